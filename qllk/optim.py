"""The optimizer, which weights it decays, and the learning rate over a run."""

from __future__ import annotations

import math

import torch


def adamw(model, *, lr, weight_decay) -> torch.optim.AdamW:
    """AdamW that decays matrices only: shrinking a norm's scale or a bias has no use.

    Paper    Loshchilov and Hutter 2017, 1711.05101
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


def warmup_cosine(progress: float, *, warmup: float, final: float) -> float:
    """What share of the peak learning rate to use: up in a line, down in half a cosine wave.

        rise(progress / warmup) * (final + (1 - final) (1 + cos(pi progress)) / 2)

    `progress` runs from 0 to 1 over the run, by steps or by seconds. The rise starts at a
    hundredth, since a first step at rate 0 would be a step for nothing.
    Paper    Loshchilov and Hutter 2016, 1608.03983, equation 5
    """
    rise = max(0.01, min(1.0, progress / warmup)) if warmup else 1.0
    return rise * (final + (1 - final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2)
