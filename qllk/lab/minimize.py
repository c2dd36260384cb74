"""A small training loop, for the experiments of a lesson."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def minimize(
    model: nn.Module, loss_of: Callable[[int], torch.Tensor], steps: int, lr: float = 1e-3
) -> list[float]:
    """Minimize `loss_of(step)` with Adam; return the loss before each step.

    The gradient is clipped to norm 1, and the learning rate falls to zero in the second half.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.Adam(trained), []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - step / steps))
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses
