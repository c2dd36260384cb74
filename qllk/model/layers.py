"""Norms, MLPs, dropout and output heads, which act on each position by itself.

`split_heads` and `join_heads` are for attention heads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..checks import check_positive


class ResidualLinear(nn.Linear):
    """The last linear layer of a part whose output is added to the residual stream.

    The class marks the role: the more of these layers a model has, the smaller `initialise` draws
    them.
    """


class _ReluMLP(nn.Module):
    """x -> W2 relu(W1 x), with `ratio` times D hidden units.  Shapes  (B,T,D) -> (B,T,D)"""

    def __init__(self, d_model: int, *, ratio: float = 4, bias: bool = False):
        super().__init__()
        width = _hidden_width(d_model, ratio)
        self.up = nn.Linear(d_model, width, bias=bias)
        self.out = ResidualLinear(width, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.activation(self.up(x)))

    def activation(self, x: Tensor) -> Tensor:
        return F.relu(x)


class GeluMLP(_ReluMLP):
    """x -> W2 gelu(W1 x), with GPT-2's tanh approximation of the Gaussian CDF."""

    def activation(self, x):
        return F.gelu(x, approximate="tanh")


class _ExactGeluMLP(_ReluMLP):
    """x -> W2 gelu(W1 x), with the exact Gaussian CDF.  Hendrycks 2016, 1606.08415."""

    def activation(self, x):
        return F.gelu(x)


class SquaredReluMLP(_ReluMLP):
    """x -> W2 relu(W1 x)^2.  Primer, So 2021, 2109.08668, 3."""

    def activation(self, x):
        return _SquaredReLU.apply(x) if torch.is_grad_enabled() else F.relu(x).square()


class _SquaredReLU(torch.autograd.Function):
    """relu(x)^2 with half as many passes over x as autograd makes of it. Without a gradient, the
    call costs more than it saves.

        dx = 2 relu(x) dy

    Shapes   any
    Twin     F.relu(x).square(), bit for bit
    """

    @staticmethod
    def forward(ctx, x):
        y = F.relu(x)
        ctx.save_for_backward(y)
        return y.square()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return (gradient * y).mul_(2)


class _SwiGLU(nn.Module):
    """x -> W3 ( silu(W1 x) * W2 x ), with `ratio` times D hidden units.  Shazeer 2020, 2002.05202.

    It has three matrices: at a ratio of 8/3, as many parameters as the other MLPs at 4.

    Shapes   (B,T,D) -> (B,T,D)
    """

    def __init__(self, d_model: int, *, ratio: float = 4, bias: bool = False):
        super().__init__()
        width = _hidden_width(d_model, ratio)
        self.gate_up = nn.Linear(d_model, 2 * width, bias=bias)
        self.out = ResidualLinear(width, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * up)


def _no_mlp(d_model: int) -> None:
    """No MLP: the block is its mixer alone."""


def _hidden_width(d_model, ratio):
    width = round(ratio * d_model)
    check_positive(f"an MLP of ratio={ratio}", width=width)
    return width


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, computed in its weight's dtype: torch warns about half precision, and takes
    a slow path for it.

    On the CPU, where torch has no kernel for its gradient, the gradient is written out. Without
    one, the call would cost more than it saves.

    Shapes   x (B,T,D) -> (B,T,D)
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            return super().forward(x)
        x = x.to(self.weight.dtype)
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        return _ScaledToRMS.apply(x, self.weight, eps)


class _ScaledToRMS(torch.autograd.Function):
    """F.rms_norm with about half as many passes over x as autograd makes of its parts.

        y = r x w,  where r = 1 / sqrt(mean(x^2) + eps)
        dx = r w dy - r^3 x mean(x w dy)        dw = sum of r x dy over all steps

    Shapes   x (…,D), w (D)  ->  (…,D)
    Twin     F.rms_norm, bit for bit; its gradients, equal to 1e-12 in float64
    """

    @staticmethod
    def forward(ctx, x, w, eps):
        r = x.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, w, r)
        return (x * r).mul_(w)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, w, r = ctx.saved_tensors
        products = x * gradient
        share = (products @ w).unsqueeze(-1) * r**3 / x.shape[-1]
        dx = (gradient * w).mul_(r).addcmul_(x, share, value=-1)
        return dx, r.flatten() @ products.reshape(-1, len(w)), None


class _DynamicTanh(nn.Module):
    """x -> tanh(a x) w + b: limits values as a norm does, without any statistics.
    Zhu 2025, 2503.10622.

    Shapes   (B,T,D) -> (B,T,D)
    """

    def __init__(self, d_model: int, *, slope: float = 0.5):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([slope]))
        self.weight, self.bias = (nn.Parameter(f(d_model)) for f in (torch.ones, torch.zeros))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.slope * x) * self.weight + self.bias


class Dropout(nn.Module):
    """Zero each value with probability `share` in training, and scale up the rest: like
    `nn.Dropout(share)`, with a generator of its own.

    The trainer sets and seeds `generator`, so that other random draws in the process do not change
    a run.
    """

    def __init__(self, share: float):
        super().__init__()
        self.share = share
        self.generator: torch.Generator | None = None

    @property
    def acts(self) -> bool:
        """Whether anything is dropped: only in training."""
        return self.training and self.share > 0.0

    def forward(self, x: Tensor) -> Tensor:
        if not self.acts:
            return x
        kept = torch.empty_like(x).bernoulli_(1.0 - self.share, generator=self.generator)
        return x * kept / (1.0 - self.share)

    def recompute_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """For checkpoint's `context_fn`: contexts of a forward pass and of its recomputation, which
        drops the same values.
        """
        start = self.generator and self.generator.get_state()
        return contextlib.nullcontext(), self._rewound(start)

    @contextlib.contextmanager
    def _rewound(self, start) -> Iterator[None]:
        if start is None:  # torch.utils.checkpoint restores the global generator itself
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

    def __init__(self, d_model: int, vocab_size: int, *, bias: bool = False):
        super().__init__(d_model, vocab_size, bias=bias)


class _MaskedHead(LinearHead):
    """BERT's head: one more layer at each position, then logits.  Devlin 2018, 1810.04805, code."""

    def __init__(self, d_model: int, vocab_size: int, *, eps: float = 1e-5):
        super().__init__(d_model, vocab_size, bias=True)
        self.transform = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model, eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(F.gelu(self.transform(x))))


class _PooledHead(LinearHead):
    """BERT's head for classification: one more layer on a vector, then logits. Its answer counts
    where <cls> stands.  Devlin 2018, 1810.04805, 4.1 and code.
    """

    def __init__(self, d_model: int, vocab_size: int):
        super().__init__(d_model, vocab_size, bias=True)
        self.transform = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.transform(x).tanh())


# Norms take torch's own options: eps, and elementwise_affine for "rms" (false: no weight).
NORMS = {"none": nn.Identity, "layer": nn.LayerNorm, "rms": RMSNorm, "tanh": _DynamicTanh}
MLPS = {
    "gelu": GeluMLP,
    "gelu-exact": _ExactGeluMLP,
    "relu": _ReluMLP,
    "relu2": SquaredReluMLP,
    "swiglu": _SwiGLU,
    "none": _no_mlp,
}
HEADS = {"linear": LinearHead, "masked": _MaskedHead, "pooled": _PooledHead}


def check_heads(heads: int, d_model: int) -> int:
    """Return the number of attention heads, if it divides d_model.

    Raises   ValueError when it is not a whole number above 0 that divides d_model
    """
    check_positive("a mixer", heads=heads)
    if d_model % heads:
        raise ValueError(f"heads={heads} must divide d_model={d_model}")
    return heads


def split_heads(x: Tensor, n: int, heads: int) -> Tensor:
    """Split a fused projection into n tensors by head.  Shapes  (B,T,n D) -> (n,B,H,T,D/H)"""
    return x.unflatten(-1, (n, heads, -1)).permute(2, 0, 3, 1, 4)


def join_heads(x: Tensor) -> Tensor:
    """Concatenate the heads.  Shapes  (B,H,T,K) -> (B,T,H K)"""
    return x.transpose(1, 2).flatten(2)
