"""Mamba and Mamba-2: recurrences whose decay, input and output are selected by the input.

Both are a block of their own, with an MLP's gate in it: in models of `Spec` they stand in blocks
with `mlp=("none", {})`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_positive
from . import kernels
from .layers import ResidualLinear, RMSNorm, check_heads
from .masks import Mask, refuse_mask
from .positions import NoPositions

_STEPS = (1e-3, 1e-1)  # the range of step sizes at the start


class MambaState(NamedTuple):
    """State of Mamba: the convolution's last inputs, and N numbers per channel."""

    x: Tensor  # (B,W-1,E)
    h: Tensor  # (B,E,N)
    kind = "mamba"


class Mamba2State(NamedTuple):
    """State of Mamba-2: the convolution's last inputs, and an N x V matrix per head."""

    x: Tensor  # (B,W-1,E+2N)
    S: Tensor  # (B,H,N,V)
    kind = "mamba2"


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor, h: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A state space model in each channel, whose step size and whose two vectors are inputs.

        h_t = exp(dt_t A) h_{t-1} + dt_t x_t b_t        y_t = h_t c_t

    A channel e has N numbers. The larger its step, the more it forgets and the more it takes in.

    Shapes   x, dt (B,T,E), dt above 0   A (E,N), below 0   b, c (B,T,N)   h (B,E,N), default: zeros
             ->  y (B,T,E), h (B,E,N), in float32 or wider
    State    E N numbers, for any T
    Cost     time and memory O(T E N)
    Paper    Mamba, Gu 2023, 2312.00752, algorithm 2 (S6)
    Twin     selective_scan_loop, equal to 1e-12 in float64
    """
    log_decay = (dt[..., None] * A).flatten(2)  # (B,T,E N)
    new = ((dt * x)[..., None] * b[:, :, None]).flatten(2)
    sums, h = kernels.running_sum(new, log_decay, None if h is None else h.flatten(1))
    y = sums.unflatten(2, A.shape) @ c[..., None].to(sums.dtype)
    return y[..., 0], h.unflatten(1, A.shape)


def selective_scan_loop(
    x: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor, h: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition of `selective_scan`."""
    h = x.new_zeros(len(x), *A.shape) if h is None else h
    outputs = []
    for t in range(x.shape[1]):
        step = dt[:, t, :, None]  # (B,E,1)
        h = (step * A).exp() * h + step * x[:, t, :, None] * b[:, t, None]
        outputs.append((h * c[:, t, None]).sum(-1))
    return torch.stack(outputs, dim=1), h


class Mamba(nn.Module):
    """Mamba's block: a short convolution, a selective scan and a gate.

        u = silu(conv(W_x x))      y = W_o ( (scan(u, dt, A, b, c) + D u) * silu(W_z x) )
        dt = softplus(W_dt W_r u + bias)      b = W_b u      c = W_c u

    Options  states  N, numbers per channel
             expand  E, channels as a multiple of d_model
             width   of the convolution, in steps
             rank    of the matrix that dt is computed through; default: d_model / 16, rounded up
    State    MambaState: E (N + width - 1) numbers
    Cost     time O(T E (D + N))
    Paper    Mamba, Gu 2023, 2312.00752, figure 3 and section 3.6; A starts as -1 … -N, and the
             step sizes, which are drawn at random there, are spaced evenly on a log scale
    """

    def __init__(
        self,
        d_model: int,
        positions: NoPositions | None = None,
        *,
        states: int = 16,
        expand: int = 2,
        width: int = 4,
        rank: int | None = None,
    ):
        super().__init__()
        rank = math.ceil(d_model / 16) if rank is None else rank
        check_positive("mamba", states=states, expand=expand, width=width, rank=rank)
        E = expand * d_model
        self.sizes = rank, states, states
        self.xz = nn.Linear(d_model, 2 * E, bias=False)
        self.taps = nn.Parameter(torch.randn(width, E) * width**-0.5)
        self.taps_bias = nn.Parameter(torch.zeros(E))
        self.select = nn.Linear(E, rank + 2 * states, bias=False)
        self.step = nn.Linear(rank, E, bias=False)
        self.step_bias = nn.Parameter(_first_steps(E))
        # (E N,): not a matrix, so that it has no weight decay
        self.log_A = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(E))
        self.skip = nn.Parameter(torch.ones(E))
        self.out = ResidualLinear(E, d_model, bias=False)

    def forward(
        self, x: Tensor, state: MambaState | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, MambaState]:
        refuse_mask(mask, self)
        past, h = state or (None, None)
        u, z = self.xz(x).chunk(2, dim=-1)
        u, past = kernels.causal_conv(u, self.taps, past)
        u = F.silu(u + self.taps_bias)
        low, b, c = self.select(u).split(self.sizes, dim=-1)
        dt = F.softplus(self.step(low) + self.step_bias)
        A = -self.log_A.exp().view(u.shape[-1], -1)
        y, h = selective_scan(u, dt, A, b, c, h)
        y = (y.to(u.dtype) + self.skip * u) * F.silu(z)
        return self.out(y), MambaState(past, h)


class Mamba2(nn.Module):
    """Mamba-2's block: the decay is one number per head, and the state a matrix, as in linear
    attention, with c for a query, b for a key and dt u for a value.

        u, b, c = silu(conv(W x))      o = linear_attention(c, b, dt u, dt A)
        y = W_o ( norm((o + D u) * silu(W_z x)) )      dt = softplus(W_dt x + bias)

    Options  heads   which must divide expand * d_model; all share one b and one c
             states  N, width of b and of c
             expand  E, channels as a multiple of d_model
             width   of the convolution, in steps
    State    Mamba2State: E N + (width - 1) (E + 2 N) numbers
    Cost     time O(T E (D + N + C)) in chunks of C
    Paper    Mamba-2, Dao 2024, 2405.21060, figure 6 and section 7; first values as in Mamba
    """

    def __init__(
        self,
        d_model: int,
        positions: NoPositions | None = None,
        *,
        heads: int,
        states: int = 64,
        expand: int = 2,
        width: int = 4,
    ):
        super().__init__()
        check_positive("mamba2", states=states, expand=expand, width=width)
        E = expand * d_model
        self.heads = check_heads(heads, E)
        mixed = E + 2 * states
        self.sizes, self.mixed = (E, mixed, heads), (E, states, states)
        self.project = nn.Linear(d_model, E + mixed + heads, bias=False)
        self.taps = nn.Parameter(torch.randn(width, mixed) * width**-0.5)
        self.taps_bias = nn.Parameter(torch.zeros(mixed))
        self.step_bias = nn.Parameter(_first_steps(heads))
        self.log_A = nn.Parameter(torch.linspace(1, 16, heads).log())
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(E, eps=1e-5)  # as published
        self.out = ResidualLinear(E, d_model, bias=False)

    def forward(
        self, x: Tensor, state: Mamba2State | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, Mamba2State]:
        refuse_mask(mask, self)
        past, S = state or (None, None)
        z, mixed, dt = self.project(x).split(self.sizes, dim=-1)
        mixed, past = kernels.causal_conv(mixed, self.taps, past)
        u, b, c = F.silu(mixed + self.taps_bias).split(self.mixed, dim=-1)
        u = u.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B,H,T,V)
        dt = F.softplus(dt + self.step_bias).transpose(1, 2)[..., None]  # (B,H,T,1)
        log_decay = -self.log_A.exp()[:, None, None] * dt
        q, k = (part[:, None].expand(-1, self.heads, -1, -1) for part in (c, b))
        o, S = kernels.linear_attention(q, k, dt * u, log_decay, S)
        y = (o.to(u.dtype) + self.skip[:, None, None] * u).transpose(1, 2).flatten(2)
        return self.out(self.norm(y * F.silu(z))), Mamba2State(past, S)


def _first_steps(size: int) -> Tensor:
    """Biases whose softplus is spaced evenly on a log scale over `_STEPS`.  Shapes  -> (size,)"""
    steps = torch.logspace(*map(math.log10, _STEPS), size)
    return steps + torch.log(-torch.expm1(-steps))  # the inverse of softplus
