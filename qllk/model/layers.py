"""Norms, feed-forward layers, dropout and heads: the parts that act on each position alone."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from ..checks import check_positive


def _hidden_width(d_model, ratio) -> int:
    """F, the width of an MLP inside: `ratio` times D, rounded.

    Raises   ValueError when it is below one
    """
    width = round(ratio * d_model)
    check_positive(f"an MLP of ratio={ratio}", width=width)
    return width


class ReluMLP(nn.Module):
    """x -> W2 relu(W1 x), `ratio` times as wide inside.  Shapes  (B,T,D) -> (B,T,D)"""

    def __init__(self, d_model, *, ratio=4, bias=False):
        super().__init__()
        width = _hidden_width(d_model, ratio)
        self.up = nn.Linear(d_model, width, bias=bias)
        self.out = nn.Linear(width, d_model, bias=bias)

    def forward(self, x):
        return self.out(self.bend(self.up(x)))

    def bend(self, x):
        return F.relu(x)


class GeluMLP(ReluMLP):
    """x -> W2 gelu(W1 x), by the tanh that GPT-2 takes for the bell curve's sum."""

    def bend(self, x):
        return F.gelu(x, approximate="tanh")


class ExactGeluMLP(ReluMLP):
    """x -> W2 gelu(W1 x), by the bell curve's sum itself.  Hendrycks 2016, 1606.08415."""

    def bend(self, x):
        return F.gelu(x)


class SquaredReluMLP(ReluMLP):
    """x -> W2 relu(W1 x)^2.  Primer, So 2021, 2109.08668, 3."""

    def bend(self, x):
        return F.relu(x).square()


class SwiGLU(nn.Module):
    """x -> W3 ( silu(W1 x) * W2 x ), `ratio` times as wide inside.  Shazeer 2020, 2002.05202.

    Three matrices: a ratio of 8/3 has the parameters of the other MLPs at 4.

    Shapes   (B,T,D) -> (B,T,D)
    """

    def __init__(self, d_model, *, ratio=4, bias=False):
        super().__init__()
        width = _hidden_width(d_model, ratio)
        self.gate_up = nn.Linear(d_model, 2 * width, bias=bias)
        self.out = nn.Linear(width, d_model, bias=bias)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * up)


class RMSNorm(nn.RMSNorm):
    """torch's, at the precision of its weight: half precision it would take with a warning, slowly.

    Shapes   x (B,T,D) -> (B,T,D)
    """

    def forward(self, x):
        return super().forward(x if self.weight is None else x.to(self.weight.dtype))


class DynamicTanh(nn.Module):
    """x -> tanh(a x) w + b: squeezes like a norm and measures nothing.  Zhu 2025, 2503.10622.

    Shapes   (B,T,D) -> (B,T,D)
    """

    def __init__(self, d_model, *, slope=0.5):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([slope]))
        self.weight, self.bias = (nn.Parameter(f(d_model)) for f in (torch.ones, torch.zeros))

    def forward(self, x):
        return torch.tanh(self.slope * x) * self.weight + self.bias


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


class LinearHead(nn.Linear):
    """Vectors to logits.  Shapes  (B,T,D) -> (B,T,vocab_size)"""

    def __init__(self, d_model, vocab_size, *, bias=False):
        super().__init__(d_model, vocab_size, bias=bias)


class MaskedHead(LinearHead):
    """BERT's: one more layer at each position, then logits.  Devlin 2018, 1810.04805, code."""

    def __init__(self, d_model, vocab_size, *, eps=1e-5):
        super().__init__(d_model, vocab_size, bias=True)
        self.transform = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model, eps)

    def forward(self, x):
        return super().forward(self.norm(F.gelu(self.transform(x))))


# Options of the norms are torch's own: eps; for "rms" also elementwise_affine, false for no weight.
NORMS = {"none": nn.Identity, "layer": nn.LayerNorm, "rms": RMSNorm, "tanh": DynamicTanh}
MLPS = {
    "gelu": GeluMLP,
    "gelu-exact": ExactGeluMLP,
    "relu": ReluMLP,
    "relu2": SquaredReluMLP,
    "swiglu": SwiGLU,
}
HEADS = {"linear": LinearHead, "masked": MaskedHead}
