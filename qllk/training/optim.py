"""Optimizers by name, which weights they get, gradients, and the learning rate over a run.

A table is the weight of an `nn.Embedding(…, sparse=True)`: its gradient is sparse, a few rows of
many. Tables have an optimizer of their own, independent of the one chosen by name.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..checks import look_up
from ..model.layers import LinearHead
from ..probes.inside import state_bytes


def _weights_due(optimizer) -> Iterator[tuple[Tensor, dict, dict[str, Tensor]]]:
    """Yield each weight that has a gradient, with its group and its state."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                if p not in optimizer.state:
                    optimizer.state[p] = optimizer.init_state(p, group.get("dtype"))
                yield p, group, optimizer.state[p]


class _MomentOptimizer(torch.optim.Optimizer):
    """The common part of Lion, AdamW and Muon: moments, which are moving averages of the gradients.

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
        for p, group, stored in _weights_due(self):
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


class Muon(_MomentOptimizer):
    """Update a matrix equally in all directions: all singular values of the update are about 1.

        m <- b2 m + (1 - b2) g        U S V^T = b1 m + (1 - b1) g        for a matrix (M,N):
        w <- (1 - lr decay) w - lr 0.2 sqrt(max(M, N)) U V^T

    The factor gives the update a root mean square of about 0.2, that of AdamW's in practice, so
    that one learning rate and one decay fit both. Everything is computed in the dtype of the
    weights; torch's Muon rounds to bfloat16, which is slow on CPUs without instructions for it.

    State    one number per weight, half of AdamW's
    Cost     time O(M N min(M, N)) per step, apart from that of Lion
    Paper    Jordan 2024, https://kellerjordan.github.io/posts/muon; Liu 2025, 2502.16982,
             section 2.2, for the factor and the decay
    Twin     torch.optim.Muon with adjust_lr_fn="match_rms_adamw", within the precision of bfloat16
    """

    moments = ("exp_avg",)

    def update(self, p: Tensor, group: dict, state: dict[str, Tensor]) -> None:
        b1, b2 = group["betas"]
        mean = state["exp_avg"].mul_(b2).add_(p.grad, alpha=1 - b2)
        step = _orthogonalise(mean.mul(b1).add_(p.grad, alpha=1 - b1))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(step, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


def _orthogonalise(x: Tensor) -> Tensor:
    """About U V^T, where U S V^T is the singular value decomposition of a matrix.

        x <- x / |x|,  then five times:  x <- (a + b x x^T + c (x x^T)^2) x

    Each time, a singular value s becomes a s + b s^3 + c s^5. The five times bring all those from
    0.003 to 1 into 0.68 … 1.21: Jordan chose a, b and c to be fast, not exact.

    Shapes   (M,N) -> (M,N)
    """
    if x.shape[0] > x.shape[1]:
        return _orthogonalise(x.T).T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


class RowAdam(torch.optim.Optimizer):
    """Adam for tables: update only the rows that have a gradient, and scale each row as a whole.

        for each row r of the gradient, on its n-th time:
        v_r <- b v_r + (1 - b) mean(g_r^2)
        w_r <- w_r - factor lr g_r / (sqrt(v_r / (1 - b^n)) + 1e-8)

    A row is seen so rarely that it has no momentum and no weight decay, and that its learning rate
    is `factor` times that of other weights. The size of the gradient does not matter, so it need
    not be clipped.

    Shapes   tables (N,D), their gradients sparse in N, with repeated rows or without
    State    two numbers per row: v and n
    Cost     time and memory of a step O(rows of the gradient), independent of N
    Paper    Kingma and Ba 2014, 1412.6980, algorithm 1, without momentum. One second moment for a
             row is that of row-wise Adagrad, as in PyTorch-BigGraph (Lerer 2019, 1903.12287), and
             of FBGEMM's partial row-wise Adam, which has momentum and one count for all rows
    Twin     a loop over the rows, in its test
    Raises   ValueError when a gradient is not sparse
    """

    def __init__(self, tables, *, lr: float, factor: float, beta: float = 0.98):
        super().__init__(tables, {"lr": lr, "beta": beta, "factor": factor})

    def init_state(self, p: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The state of the table `p` before its first gradient."""
        return {"exp_avg_sq": p.new_zeros(len(p)), "step": torch.zeros(len(p), device=p.device)}

    @torch.no_grad()
    def step(self) -> None:
        for p, group, state in _weights_due(self):
            if not p.grad.is_sparse:
                raise ValueError(
                    "RowAdam needs a sparse gradient, but that of a table of shape "
                    f"{tuple(p.shape)} is dense, as when the table is also used outside of its "
                    "nn.Embedding; build the nn.Embedding with sparse=False"
                )
            self._update_rows(p, group, state)

    def _update_rows(self, p, group, state):
        gradient, beta = _sum_repeated_rows(p.grad), group["beta"]
        rows, g = gradient.indices()[0], gradient.values()
        count = state["step"][rows] + 1
        square = beta * state["exp_avg_sq"][rows] + (1 - beta) * g.square().mean(1)
        size = (square / (1 - beta**count)).sqrt() + 1e-8
        state["step"][rows], state["exp_avg_sq"][rows] = count, square
        p.add_(_sparse_like(gradient, g / size[:, None]), alpha=-group["factor"] * group["lr"])


def _sum_repeated_rows(gradient):
    """`gradient.coalesce()`, in a fifth of the time where its rows ascend already, as those of a
    `Lookup` do: autograd drops the flag that says so.
    """
    rows = gradient._indices()[0]
    if (rows[1:] > rows[:-1]).all():
        return _sparse_like(gradient, gradient._values())
    return gradient.coalesce()


def _sparse_like(gradient, values):
    """A tensor with other values in the rows of a gradient, each of which is there once."""
    return torch.sparse_coo_tensor(
        gradient._indices(), values, gradient.shape, is_coalesced=True, check_invariants=False
    )


class JoinedOptimizer(torch.optim.Optimizer):
    """Several optimizers as one, each with weights of its own.

    Their groups and states are also its own. Whoever sets a learning rate, saves a state or moves
    it to another device therefore sees one optimizer.

    State    those of its parts
    Raises   ValueError when a weight is in two of them
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]):
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        self._share()

    def _share(self):
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state = defaultdict(dict)
        for part in self.parts:
            self.state |= part.state
        for part in self.parts:
            part.state = self.state

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict) -> None:
        """Like torch's; each part loads its own groups and states."""
        groups, states = iter(state_dict["param_groups"]), state_dict["state"]
        for part in self.parts:
            own = [next(groups) for _ in part.param_groups]
            indices = [index for group in own for index in group["params"]]
            state = {index: states[index] for index in indices if index in states}
            part.load_state_dict({"state": state, "param_groups": own})
        self._share()


_ADAM_BETAS, _LION_BETAS, _MUON_BETAS = (0.9, 0.98), (0.9, 0.99), (0.95, 0.95)
_ADAMW = partial(torch.optim.AdamW, betas=_ADAM_BETAS, fused=True)
_ADAMW_BFLOAT16 = partial(AdamW, betas=_ADAM_BETAS, dtype=torch.bfloat16)
_LION = partial(Lion, betas=_LION_BETAS)
_LION_BFLOAT16 = partial(Lion, betas=_LION_BETAS, dtype=torch.bfloat16)
OPTIMIZERS = {  # the optimizer of the hidden matrices, and that of all other weights but tables
    "adamw": (_ADAMW, _ADAMW),
    "adamw-bfloat16": (_ADAMW_BFLOAT16, _ADAMW_BFLOAT16),
    "lion": (_LION, _LION),
    "lion-bfloat16": (_LION_BFLOAT16, _LION_BFLOAT16),
    "muon": (partial(Muon, betas=_MUON_BETAS), _ADAMW),
}


def build_optimizer(
    name: str, model: nn.Module, *, lr: float, weight_decay: float, table_lr: float = 8.0
) -> torch.optim.Optimizer:
    """Build an optimizer that decays only the matrices of a model, not its norms and biases.

    Tables get RowAdam, which decays nothing, with `table_lr` times the learning rate.

    Raises   ValueError listing the known optimizers when `name` is not one of them
    """
    of_hidden, of_others = look_up(OPTIMIZERS, name, "optimizer")
    hidden, tables = _hidden_matrices(model), find_tables(model)
    shares = {of_hidden: [], of_others: []}  # a single one where both are the same optimizer
    for p in model.parameters():
        if p.requires_grad and p not in tables:
            shares[of_hidden if p in hidden else of_others].append(p)
    parts = [make(_split_by_decay(ps, weight_decay), lr=lr) for make, ps in shares.items()]
    if trained := [p for p in model.parameters() if p.requires_grad and p in tables]:
        parts.append(RowAdam(trained, lr=lr, factor=table_lr))
    return JoinedOptimizer(parts) if len(parts) > 1 else parts[0]


def _split_by_decay(weights, weight_decay):
    return [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]


def _hidden_matrices(model):
    """The matrices between hidden vectors: of linear layers, less heads and tied embeddings."""
    ends = {m.weight for m in model.modules() if isinstance(m, LinearHead | nn.Embedding)}
    return {m.weight for m in model.modules() if isinstance(m, nn.Linear)} - ends


def find_tables(model: nn.Module) -> set[nn.Parameter]:
    """The tables of a model: the weights of each `nn.Embedding(…, sparse=True)`."""
    return {m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse}


def init_state(optimizer: torch.optim.Optimizer) -> list[dict[str, Tensor]]:
    """The state that an optimizer has for each weight, in its order, before any gradient."""
    if isinstance(optimizer, JoinedOptimizer):
        return [state for part in optimizer.parts for state in init_state(part)]
    init = getattr(optimizer, "init_state", _init_adam)
    return [init(p, g.get("dtype")) for g in optimizer.param_groups for p in g["params"]]


# ---------------------------------------------------------------- gradients


def gradient_bytes(model: nn.Module) -> int:
    """The bytes of a model's dense gradients. That of a table takes as many as it reads rows."""
    tables = find_tables(model)
    return state_bytes([p for p in model.parameters() if p not in tables])


def is_finite(gradient: Tensor) -> bool:
    """Whether all numbers of a dense or a sparse gradient are finite.

    The least and the greatest of them tell, in a tenth of the time of `isfinite` on each.
    """
    values = gradient._values() if gradient.is_sparse else gradient
    return values.numel() == 0 or all(map(math.isfinite, torch.stack(values.aminmax()).tolist()))


def gather(tensor: Tensor) -> Tensor:
    """The whole of a tensor that FSDP2 has split over processes. All of them have to call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def clip_gradients(weights: Iterable[nn.Parameter], limit: float) -> float:
    """Scale the dense gradients so that their common norm is at most `limit`; return it as it was.

    Sparse gradients are not scaled and do not count, since RowAdam is indifferent to their size.
    But when one of them is not finite, neither is the norm.
    """
    with_gradient = [p for p in weights if p.grad is not None]
    dense = [p for p in with_gradient if not p.grad.is_sparse]
    norm = gather(torch.nn.utils.clip_grad_norm_(dense, limit)).item()
    tables_finite = all(is_finite(p.grad) for p in with_gradient if p.grad.is_sparse)
    return norm if tables_finite else math.nan


# ---------------------------------------------------------------- the learning rate


def warmup_cosine(progress: float, *, warmup: float, final: float) -> float:
    """The learning rate as a fraction of its peak: linear warmup, then half a cosine wave.

        rise(progress / warmup) * (final + (1 - final) (1 + cos(pi progress)) / 2)

    `progress` goes from 0 to 1 over the run, in steps or in seconds. The warmup starts at a
    hundredth, because a first step with learning rate 0 would be wasted.

    Paper    Loshchilov and Hutter 2016, 1608.03983, equation 5
    """
    rise = max(0.01, min(1.0, progress / warmup)) if warmup else 1.0
    return rise * (final + (1 - final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2)
