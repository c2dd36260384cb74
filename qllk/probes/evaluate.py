"""The loss of a model over a whole held-out split."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ..model.families import eval_mode
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
    Options  ask   turns rows of ids (B,T+1) into a `Batch`
             rows  windows per batch
    Raises   ValueError when `data` has fewer than two ids
    """
    if len(data) < 2:
        raise ValueError(f"evaluating a model needs at least two ids, got {len(data)}")
    # Targets may be longer than the window: the spans of a short text, with their sentinels.
    total, counts = torch.zeros(2, window + 2, dtype=torch.float64)
    device = next(model.parameters()).device
    with eval_mode(model):
        for ids in iterate_windows(data, rows, window):
            batch = ask(ids).to(device)
            losses = token_losses(model(*batch.inputs), batch.targets).cpu().double()
            total[: losses.shape[1]] += losses.sum(0)
            counts[: losses.shape[1]] += (batch.targets != IGNORED).sum(0).cpu()
    reached = max(window, int(counts.nonzero().max()) + 1) if counts.any() else window
    return (total / counts)[:reached], counts[:reached]


def nats_per_token(model: nn.Module, data: np.ndarray, window: int, *, rows: int = 16) -> float:
    """The mean loss over every id of `data` except the first."""
    return mean_loss(*loss_by_position(model, data, window, rows=rows))


def mean_loss(nats: Tensor, counts: Tensor) -> float:
    """The mean over all targets of the losses that `loss_by_position` returns."""
    reached = counts > 0
    return ((nats * counts)[reached].sum() / counts.sum()).item()
