"""How good is a model? Loss over a whole held-out split, beside what simple tables reach."""

from __future__ import annotations

import torch

from ..model.families import eval_mode
from ..text.objectives import IGNORED, next_token, token_losses
from ..text.windows import iterate_windows


def loss_by_position(model, data, window: int, *, rows=16, ask=next_token):
    """Mean loss at each place of the window, over all of `data`, each window read from its start.

    A model that uses what lies far back goes on improving along the window.

    Shapes   data (n,) ids  ->  nats (window,), counts (window,), both float64; where nothing was
             asked, beyond the end of short `data` for example, the count is 0 and the nats are nan
    Options  ask   makes a `Batch` of rows (B,T+1): what the model is asked about them
    Raises   ValueError when there is no byte to predict
    """
    if len(data) < 2:
        raise ValueError(f"to judge a model takes two bytes or more, got {len(data)}")
    # An answer may be longer than what it is about: the spans of a short text, with their marks.
    total, count = torch.zeros(2, window + 2, dtype=torch.float64)
    device = next(model.parameters()).device
    with eval_mode(model):
        for ids in iterate_windows(data, rows, window):
            batch = ask(ids).to(device)
            losses = token_losses(model(*batch.inputs), batch.targets).cpu().double()
            total[: losses.shape[1]] += losses.sum(0)
            count[: losses.shape[1]] += (batch.targets != IGNORED).sum(0).cpu()
    reached = max(window, int(count.nonzero().max()) + 1) if count.any() else window
    return (total / count)[:reached], count[:reached]


def nats_per_token(model, data, window: int, *, rows=16) -> float:
    """Mean loss over every byte of `data` but the first; divide by ln 2 for bits per byte."""
    return mean_loss(*loss_by_position(model, data, window, rows=rows))


def mean_loss(nats, count) -> float:
    """One mean from those at each place, as `loss_by_position` gives them."""
    reached = count > 0
    return ((nats * count)[reached].sum() / count.sum()).item()
