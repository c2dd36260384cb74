"""Optimizers by name, the weights that they decay, and the learning rate over a run."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from ..checks import look_up


class _MomentOptimizer(torch.optim.Optimizer):
    """The common part of Lion and AdamW: moments, which are moving averages of the gradients.

    Moments are updated in the dtype of the weights and stored in `dtype`, rounded to nearest. This
    needs no random numbers and is unbiased in practice, as long as a moment changes by more per
    step than the spacing of numbers in `dtype`. A moment that decays more slowly would never
    shrink, so such betas are refused.

    State    one number per weight for each name in `moments`
    Raises   ValueError when the betas are too close to 1 for `dtype`
    """

    moments: tuple[str, ...]

    def __init__(
        self,
        groups,
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float = 0.0,
        dtype: torch.dtype | None = None,  # default: that of the weights
    ):
        if dtype is not None and 1 - max(betas) < (gap := torch.finfo(dtype).eps):
            raise ValueError(
                f"betas={betas} are too close to 1 for {dtype}: a moment must decay by at least "
                f"{gap:.2g} per step, or rounding stops it; use betas of at most {1 - gap:.4f}, "
                "or leave dtype out"
            )
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "dtype": dtype}
        super().__init__(groups, defaults)

    def init_state(self, p: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The state of the weight `p` before its first gradient."""
        return {name: torch.zeros_like(p, dtype=dtype) for name in self.moments}

    def update(self, p: Tensor, group: dict, state: dict[str, Tensor]) -> None:
        """Update the weight `p` and its state in place; here, moments have the dtype of `p`."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p not in self.state:
                    self.state[p] = self.init_state(p, group["dtype"])
                stored = self.state[p]
                moments = {name: stored[name].to(p.dtype) for name in self.moments}
                self.update(p, group, stored | moments)
                for name, moment in moments.items():
                    stored[name].copy_(moment)

    def load_state_dict(self, state_dict: dict) -> None:
        """Like torch's, which would leave the moments in the dtype of the weights."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for p in filter(self.state.__contains__, group["params"]):
                stored, dtype = self.state[p], group["dtype"] or p.dtype
                stored |= {name: stored[name].to(dtype) for name in self.moments}


class Lion(_MomentOptimizer):
    """Change every weight by the same amount, in the direction of the sign of its moment.

        w <- (1 - lr decay) w - lr sign(b1 m + (1 - b1) g)        m <- b2 m + (1 - b2) g

    Because every step has full size, it needs a third to a tenth of AdamW's learning rate and
    three to ten times its weight decay.

    State    one number per weight, half of AdamW's
    Paper    Chen 2023, 2302.06675, program 1
    Twin     lion_pytorch.Lion, bit for bit
    """

    moments = ("exp_avg",)

    def update(self, p: Tensor, group: dict, state: dict[str, Tensor]) -> None:
        b1, b2 = group["betas"]
        mean = state["exp_avg"]
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(mean.mul(b1).add_(p.grad, alpha=1 - b1).sign_(), alpha=-group["lr"])
        mean.mul_(b2).add_(p.grad, alpha=1 - b2)


class AdamW(_MomentOptimizer):
    """Adam with decoupled weight decay and moments in any dtype. Otherwise torch's is faster.

        m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2        after n steps:
        w <- (1 - lr decay) w - lr (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + 1e-8)

    State    two numbers per weight
    Paper    Loshchilov and Hutter 2017, 1711.05101, algorithm 2
    Twin     torch.optim.AdamW
    """

    moments = ("exp_avg", "exp_avg_sq")

    def init_state(self, p: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
        return _init_adam(p, dtype)

    def update(self, p: Tensor, group: dict, state: dict[str, Tensor]) -> None:
        state["step"] += 1
        (b1, b2), n = group["betas"], state["step"].item()
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.mul_(b1).add_(p.grad, alpha=1 - b1)
        square.mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        size = square.div(1 - b2**n).sqrt_().add_(1e-8)
        p.addcdiv_(mean, size, value=-group["lr"] / (1 - b1**n))


def _init_adam(p, dtype=None):
    """The initial state of our AdamW, and of torch's."""
    moments = {name: torch.zeros_like(p, dtype=dtype) for name in AdamW.moments}
    return moments | {"step": torch.zeros((), device=p.device)}


_ADAM_BETAS, _LION_BETAS = (0.9, 0.98), (0.9, 0.99)
OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, betas=_ADAM_BETAS, fused=True),
    "adamw-bfloat16": partial(AdamW, betas=_ADAM_BETAS, dtype=torch.bfloat16),
    "lion": partial(Lion, betas=_LION_BETAS),
    "lion-bfloat16": partial(Lion, betas=_LION_BETAS, dtype=torch.bfloat16),
}


def build_optimizer(
    name: str, model: nn.Module, *, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Build an optimizer that decays only the matrices of a model, not its norms and biases.

    Raises   ValueError listing the known optimizers when `name` is not one of them
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return look_up(OPTIMIZERS, name, "optimizer")(groups, lr=lr)


def init_state(optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    """The state that an optimizer has for each weight, in its order, before any gradient."""
    init = getattr(optimizer, "init_state", _init_adam)
    return [init(p, g.get("dtype")) for g in optimizer.param_groups for p in g["params"]]


def warmup_cosine(progress: float, *, warmup: float, final: float) -> float:
    """The learning rate as a fraction of its peak: linear warmup, then half a cosine wave.

        rise(progress / warmup) * (final + (1 - final) (1 + cos(pi progress)) / 2)

    `progress` goes from 0 to 1 over the run, in steps or in seconds. The warmup starts at a
    hundredth, because a first step with learning rate 0 would be wasted.

    Paper    Loshchilov and Hutter 2016, 1608.03983, equation 5
    """
    rise = max(0.01, min(1.0, progress / warmup)) if warmup else 1.0
    return rise * (final + (1 - final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2)
