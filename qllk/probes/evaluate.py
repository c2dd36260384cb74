"""The loss of a model over a whole held-out split, judged in one of two ways.

In windows, the state is dropped at each window: `loss_by_position`, `nats_per_token`, and
`iterate_batches` for any other question, for every model. As a stream, the text is read once and
the state carried, for models with `run`: `stream_losses` by piece, `losses_by_id`, and
`iterate_stream`. `mean_loss` is the mean of the losses by position or by piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import check_positive
from ..model.families import ModelState, eval_mode
from ..text.objectives import IGNORED, Batch, next_token, token_losses
from ..text.windows import iterate_windows

LN2 = math.log(2.0)  # nats per bit


def loss_by_position(
    model: nn.Module,
    data: np.ndarray,
    window: int,
    *,
    rows: int = 16,
    ask: Callable[[Tensor], Batch] = next_token,
) -> tuple[Tensor, Tensor]:
    """The mean loss at each position of the window, over all of `data`, without a carried state.

    The loss of a model that uses distant context falls along the window.

    Shapes   data (n,) ids  ->  nats (window,), counts (window,), both float64; positions without
             targets, such as those beyond the end of short `data`, have count 0 and nats nan
    Options  as `iterate_batches`
    Raises   ValueError when `data` has fewer than two ids
    """
    # Targets may be longer than the window: the spans of a short text, with their sentinels.
    total, counts = torch.zeros(2, window + 2, dtype=torch.float64)
    for logits, targets in iterate_batches(model, data, window, rows=rows, ask=ask):
        losses = token_losses(logits, targets).cpu().double()
        total[: losses.shape[1]] += losses.sum(0)
        counts[: losses.shape[1]] += (targets != IGNORED).sum(0).cpu()
    reached = max(window, int(counts.nonzero().max()) + 1) if counts.any() else window
    return (total / counts)[:reached], counts[:reached]


def iterate_batches(
    model: nn.Module,
    data: np.ndarray,
    window: int,
    *,
    rows: int = 16,
    ask: Callable[[Tensor], Batch] = next_token,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits and the targets of neighbouring windows of `data`, without a carried state.

    Shapes   data (n,) ids  ->  yields logits (B,T,vocab_size), targets (B,T), IGNORED where a
             position does not count
    Options  ask   turns rows of ids (B,T+1) into a `Batch`
             rows  windows per batch
    Raises   ValueError when `data` has fewer than two ids
    """
    _check_size(data)
    device = next(model.parameters()).device
    for ids in iterate_windows(data, rows, window):
        batch = ask(ids).to(device)
        with eval_mode(model):  # not around the loop: what happens between batches is not ours
            logits = model(*batch.inputs)
        yield logits, batch.targets


def nats_per_token(model: nn.Module, data: np.ndarray, window: int, *, rows: int = 16) -> float:
    """The mean loss over every id of `data` except the first."""
    return mean_loss(*loss_by_position(model, data, window, rows=rows))


def mean_loss(nats: Tensor, counts: Tensor) -> float:
    """The mean over all targets of what `loss_by_position` or `stream_losses` returns."""
    reached = counts > 0
    return ((nats * counts)[reached].sum() / counts.sum()).item()


def stream_losses(
    model: nn.Module,
    data: np.ndarray,
    *,
    before: np.ndarray | None = None,
    longest: int | None = None,
    piece: int = 4096,
) -> tuple[Tensor, Tensor]:
    """The mean loss of each piece of `data`, read once from start to end with a carried state.

    The mean over all pieces does not depend on how long they are.

    Shapes   data (n,) ids  ->  nats (pieces,), counts (pieces,), both float64
    Options  as `iterate_stream`
    Raises   as `iterate_stream`
    """
    read = iterate_stream(model, data, before=before, longest=longest, piece=piece)
    losses = [_losses(*one) for one in read]
    counts = torch.tensor([len(nats) for nats in losses], dtype=torch.float64)
    return torch.stack([nats.mean() for nats in losses]), counts


def losses_by_id(model: nn.Module, data: np.ndarray, *, longest: int | None = None) -> Tensor:
    """The loss of every id of `data` but the first, read once with a carried state.

    Shapes   data (n,) ids  ->  nats (n-1,) float64
    Options  longest, and what it raises: as `iterate_stream`
    """
    return torch.cat([_losses(*one) for one in iterate_stream(model, data, longest=longest)])


def _losses(logits, targets):
    return token_losses(logits, targets)[0].cpu().double()


def iterate_stream(
    model: nn.Module,
    data: np.ndarray,
    *,
    before: np.ndarray | None = None,
    longest: int | None = None,
    piece: int = 4096,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits and the targets of each piece of `data`, read once with a carried state.

    The targets are those of `loss_by_position`: every id but the first. With `longest`, the
    state is dropped every `longest` ids; with `longest=window` the streams are windows.

    Shapes   data (n,) ids  ->  yields logits (1,T,vocab_size), targets (1,T)
    Options  before    a text that is read first and whose losses do not count: every stream starts
                       from the state after it; default: from no state
             longest   ids in a stream, to bound a state that grows; default: one stream
             piece     ids that the model reads at a time, for the cost only: T is at most this
    Cost     one state, and what a piece takes; no more for a longer text if the state is constant
    Raises   ValueError when `data` has fewer than two ids, `longest` or `piece` is below 1, the
             model has no `run`, or a stream is longer than its context; and as `model.run`
    """
    _check_size(data)
    before = data[:0] if before is None else before
    longest = len(data) - 1 if longest is None else longest
    check_positive("iterate_stream", longest=longest, piece=piece)
    _check_can_stream(model, len(before) + min(longest, len(data) - 1))
    device, begin = next(model.parameters()).device, read_text(model, before, piece=piece)
    for start in range(0, len(data) - 1, longest):
        state = begin
        for ids in iterate_windows(data[start : start + longest + 1], 1, piece):
            batch = next_token(ids).to(device)
            with eval_mode(model):  # not around the loop: what happens between pieces is not ours
                logits, state = model.run(*batch.inputs, state)
            yield logits, batch.targets


def read_text(
    model: nn.Module, text: np.ndarray, state: ModelState | None = None, *, piece: int = 4096
) -> ModelState | None:
    """The state after a text that follows `state`, read `piece` ids at a time.

    Shapes   text (n,) ids; the state of an empty text is the given one
    """
    device = next(model.parameters()).device
    with eval_mode(model):
        for start in range(0, len(text), piece):
            ids = torch.from_numpy(np.array(text[start : start + piece]))[None]
            _, state = model.run(ids.to(device), state)
    return state


def _check_size(data):
    if len(data) < 2:
        raise ValueError(f"evaluating a model needs at least two ids, got {len(data)}")


def _check_can_stream(model, length):
    if not hasattr(model, "run"):
        raise ValueError(
            f"a stream needs a model with run(ids, state), and {type(model).__name__} has none; "
            "judge it in windows, with loss_by_position"
        )
    context = getattr(getattr(model, "spec", None), "context", None)
    if context and length > context:
        raise ValueError(
            f"the model reads at most {context} ids, but a stream would have {length}; a smaller "
            "`longest` begins new streams, and a shorter `before` leaves them more ids"
        )
