"""Optimizers by name, which weights they decay, and the learning rate over a run."""

from __future__ import annotations

import math
from functools import partial

import torch

from ..checks import look_up


class _MomentOptimizer(torch.optim.Optimizer):
    """What Lion and AdamW share: fading means of every weight's gradients, kept between steps.

    The means are computed with in the type of the weights and kept in `dtype`, which is that of
    the weights unless given. They are rounded to the nearest number: that needs no randomness and
    costs nothing, and it is fair as long as a mean fades by more in a step than two neighbouring
    numbers lie apart. A mean that fades slower would never shrink; it is refused.

    State    one number for each weight and each name in `means`
    Raises   ValueError when the means fade too slowly for `dtype`
    """

    means: tuple[str, ...]

    def __init__(self, groups, *, lr, betas, weight_decay=0.0, dtype=None):
        if dtype is not None and 1 - max(betas) < (gap := torch.finfo(dtype).eps):
            raise ValueError(
                f"betas={betas}: a mean kept in {dtype} must fade by {gap:.2g} a step or more, or "
                f"rounding holds it where it is; use betas of at most {1 - gap:.4f}, or no dtype"
            )
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "dtype": dtype}
        super().__init__(groups, defaults)

    def fresh(self, p, dtype) -> dict[str, torch.Tensor]:
        """What is remembered of the weight `p` before its first gradient."""
        return {name: torch.zeros_like(p, dtype=dtype) for name in self.means}

    def move(self, p, group, state, *means) -> None:
        """Update the weight `p` and its means, in place."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p not in self.state:
                    self.state[p] = self.fresh(p, group["dtype"])
                state = self.state[p]
                means = [state[name].to(p.dtype) for name in self.means]
                self.move(p, group, state, *means)
                for name, mean in zip(self.means, means, strict=True):
                    state[name].copy_(mean)

    def load_state_dict(self, state_dict):
        """As torch's, which would leave the means in the type of the weights."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for p in filter(self.state.__contains__, group["params"]):
                kept, dtype = self.state[p], group["dtype"] or p.dtype
                kept |= {name: kept[name].to(dtype) for name in self.means}


class Lion(_MomentOptimizer):
    """Move every weight by the same amount, towards where its gradients have been pointing.

        w <- (1 - lr decay) w - lr sign(b1 m + (1 - b1) g)        m <- b2 m + (1 - b2) g

    As each step has full size, it wants a third to a tenth of AdamW's learning rate, and as much
    more decay.

    State    one number for each weight, half of AdamW's
    Paper    Chen 2023, 2302.06675, program 1
    Twin     lion_pytorch.Lion, bit for bit
    """

    means = ("exp_avg",)

    def move(self, p, group, state, mean):
        b1, b2 = group["betas"]
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(mean.mul(b1).add_(p.grad, alpha=1 - b1).sign_(), alpha=-group["lr"])
        mean.mul_(b2).add_(p.grad, alpha=1 - b2)


def _fresh_adam(p, dtype=None):
    """What Adam remembers of a weight before its first gradient, torch's own included."""
    means = {name: torch.zeros_like(p, dtype=dtype) for name in AdamW.means}
    return means | {"step": torch.zeros((), device=p.device)}


class AdamW(_MomentOptimizer):
    """Adam with decay of its own, for means of another type than the weights; else use torch's.

        m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2        after n steps:
        w <- (1 - lr decay) w - lr (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + 1e-8)

    State    two numbers for each weight
    Paper    Loshchilov and Hutter 2017, 1711.05101, algorithm 2
    Twin     torch.optim.AdamW
    """

    means = ("exp_avg", "exp_avg_sq")

    def fresh(self, p, dtype):
        return _fresh_adam(p, dtype)

    def move(self, p, group, state, mean, square):
        state["step"] += 1
        (b1, b2), n = group["betas"], state["step"].item()
        mean.mul_(b1).add_(p.grad, alpha=1 - b1)
        square.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        size = square.div(1 - b2**n).sqrt_().add_(1e-8)
        p.addcdiv_(mean, size, value=-group["lr"] / (1 - b1**n))


_ADAM, _LION = (0.9, 0.98), (0.9, 0.99)
OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, betas=_ADAM, fused=True),
    "adamw-bfloat16": partial(AdamW, betas=_ADAM, dtype=torch.bfloat16),
    "lion": partial(Lion, betas=_LION),
    "lion-bfloat16": partial(Lion, betas=_LION, dtype=torch.bfloat16),
}


def build_optimizer(name: str, model, *, lr, weight_decay) -> torch.optim.Optimizer:
    """The optimizer of a model, which decays matrices only: to shrink a norm or a bias has no use.

    Raises   ValueError listing the optimizers, when `name` is none
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return look_up(OPTIMIZERS, name, "optimizer")(groups, lr=lr)


def init_state(optimizer) -> list[dict[str, torch.Tensor]]:
    """What the optimizer remembers of each weight, in its order, before any gradient."""
    make = getattr(optimizer, "fresh", _fresh_adam)
    return [make(p, g.get("dtype")) for g in optimizer.param_groups for p in g["params"]]


def warmup_cosine(progress: float, *, warmup: float, final: float) -> float:
    """What share of the peak learning rate to use: up in a line, down in half a cosine wave.

        rise(progress / warmup) * (final + (1 - final) (1 + cos(pi progress)) / 2)

    `progress` runs from 0 to 1 over the run, by steps or by seconds. The rise starts at a
    hundredth, since a first step at rate 0 would be a step for nothing.
    Paper    Loshchilov and Hutter 2016, 1608.03983, equation 5
    """
    rise = max(0.01, min(1.0, progress / warmup)) if warmup else 1.0
    return rise * (final + (1 - final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2)
