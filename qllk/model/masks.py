"""Masks: which keys each query may attend to, as a small value and as a table of bools."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_positive


def causal_mask(
    T: int,
    N: int,
    window: int | None = None,
    sinks: int = 0,
    device: torch.device | None = None,
) -> Tensor:
    """Which of N keys each of T queries may attend to; the queries are the *last* T of N positions.

    Query i stands at position N - T + i. It attends to itself and to what came before: to all of
    it, or to the last `window` positions, its own included, and the first `sinks`. Training,
    prefill and a single cached step are therefore one case.

    Shapes   -> (T,N) bool, True where a query may attend
    Paper    sinks: StreamingLLM, Xiao 2023, 2309.17453
    """
    rows = torch.arange(N - T, N, device=device)[:, None]
    cols = torch.arange(N, device=device)
    past = cols <= rows
    return past if window is None else past & ((cols > rows - window) | (cols < sinks))


@dataclass(frozen=True)
class Mask:
    """Which keys each query may attend to, as a small value. By default, those up to its own.

    causal     whether later positions are hidden from a query
    window     at most this many positions, the query's own included; default: no limit
    sinks      number of first positions that stay visible outside the window
    documents  (B,N), any dtype: a query attends only to positions with its own number;
               default: each row is one document
    text       (B,N) bool, False for padding, which no query attends to; default: no padding

    Raises   ValueError when the window is below one or not causal, or the sinks have no window
    """

    causal: bool = True
    window: int | None = None
    sinks: int = 0
    documents: Tensor | None = None
    text: Tensor | None = None

    def __post_init__(self):
        sinks, window = self.sinks, self.window
        if isinstance(sinks, bool) or not isinstance(sinks, int) or sinks < 0:
            raise ValueError(f"sinks must be a whole number, 0 or more, got {sinks!r}")
        if window is None and sinks:
            raise ValueError(
                f"sinks={sinks} need a window: without one, every position stays visible"
            )
        if window is not None:
            check_positive("Mask", window=window)
            if not self.causal:
                raise ValueError(f"a window needs a causal mask, got window={window}, causal=False")

    @property
    def plain(self) -> bool:
        """Whether it hides at most the future: no window, no documents, no padding."""
        return self.window is self.documents is self.text is None

    def table(self, T: int, N: int, device: torch.device | None = None) -> Tensor | None:
        """The mask as torch's kernels take it, for queries at the last T of N positions.

        Shapes   -> (T,N) bool, or (B,1,T,N) with documents or padding, True where a query may
                 attend; None when nothing is hidden
        Raises   ValueError when documents or text do not give a value for each of the N positions
        """
        table = causal_mask(T, N, self.window, self.sinks, device) if self.causal else None
        if self.documents is not None:
            documents = _check_length("documents", self.documents, N)
            same = (documents[:, N - T :, None] == documents[:, None])[:, None]
            table = same if table is None else same & table
        if self.text is not None:
            text = _check_length("text", self.text, N)[:, None, None].expand(-1, -1, T, -1)
            table = text if table is None else text & table
        return table


def _check_length(name, values, N):
    if values.ndim != 2 or values.shape[1] != N:
        raise ValueError(
            f"{name} must have a value for each of the {N} positions that can be attended to, "
            f"those in the state included, as shape (batch, {N}); got {tuple(values.shape)}"
        )
    return values


def refuse_mask(mask: Mask | None, layer: object) -> None:
    """Check that `mask` is plain or None, for a layer that cannot hide single positions.

    Raises   ValueError when the mask hides more than the future
    """
    if mask is not None and not mask.plain:
        raise ValueError(
            f"{type(layer).__name__} cannot be masked: it keeps no individual keys to hide, so it "
            "would carry one document of a row into the next. Give each document a row of its own, "
            "or mix only by attention without sinks and tiles (softmax, latent)"
        )
