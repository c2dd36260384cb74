"""Norms, feed-forward layers and dropout: the parts that act on each position alone."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import nn


def choose(table: dict, name: str, what: str):
    """`table[name]`, or an error that lists what there is."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(sorted(table))}")
    return table[name]


def make(table: dict, part, what: str, *args):
    """Build the part `(name, options)` from a table of classes.

    Raises   ValueError when the table has no such name, or the part no such option
    """
    name, options = part
    cls = choose(table, name, what)
    try:
        return cls(*args, **options)
    except TypeError as error:
        raise ValueError(f"{what} {name!r}: {error}") from None


class GeluMLP(nn.Module):
    """x -> W2 gelu(W1 x), `ratio` times as wide inside.  Shapes  (B,T,D) -> (B,T,D)"""

    def __init__(self, d_model, *, ratio=4):
        super().__init__()
        self.up = nn.Linear(d_model, ratio * d_model, bias=False)
        self.out = nn.Linear(ratio * d_model, d_model, bias=False)

    def forward(self, x):
        return self.out(F.gelu(self.up(x), approximate="tanh"))


class SquaredReluMLP(nn.Module):
    """x -> W2 relu(W1 x)^2, `ratio` times as wide inside.  Primer, So 2021, 2109.08668, 3.

    Shapes   (B,T,D) -> (B,T,D)
    """

    def __init__(self, d_model, *, ratio=4):
        super().__init__()
        self.up = nn.Linear(d_model, ratio * d_model, bias=False)
        self.out = nn.Linear(ratio * d_model, d_model, bias=False)

    def forward(self, x):
        return self.out(F.relu(self.up(x)).square())


class Dropout(nn.Module):
    """Zero a share of the numbers while training and scale up the rest.

    The mask is drawn by `generator`, which whoever trains sets and seeds, so that nothing else in
    the process can change a run.
    """

    def __init__(self, share):
        super().__init__()
        self.share = share
        self.generator: torch.Generator | None = None

    def forward(self, x):
        if not self.training or self.share == 0.0:
            return x
        mask = torch.empty_like(x).bernoulli_(1.0 - self.share, generator=self.generator)
        return x * mask / (1.0 - self.share)

    def twice(self):
        """Two contexts, for a first computation and for its repetition with the same masks."""
        start = self.generator and self.generator.get_state()
        return contextlib.nullcontext(), self._from(start)

    @contextlib.contextmanager
    def _from(self, start):
        if start is None:  # torch's global generator is the repeater's own care
            yield
            return
        now = self.generator.get_state()
        self.generator.set_state(start)
        try:
            yield
        finally:
            self.generator.set_state(now)


NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
MLPS = {"gelu": GeluMLP, "relu2": SquaredReluMLP}
