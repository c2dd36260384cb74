"""Recurrent mixers: sums, matrix states and convolutions, all with a state of fixed size.

They keep no individual keys, so they refuse a mask that hides more than the future. See `mixers`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_positive, look_up
from . import kernels
from .layers import ResidualLinear, RMSNorm, check_heads, join_heads, split_heads
from .masks import Mask, refuse_mask
from .positions import NoPositions


class SumState(NamedTuple):
    """State of the cumulative sum: D numbers, and the number of steps in the sum."""

    S: Tensor  # (B,D)
    t: int
    kind = "cumsum"


class LinearState(NamedTuple):
    """State of linear attention: one K x V matrix per head."""

    S: Tensor  # (B,H,K,V)
    kind = "linear"


class DeltaState(NamedTuple):
    """State of the delta rule: one K x V matrix per head, whose values are replaced, not added."""

    S: Tensor  # (B,H,K,V)
    kind = "delta"


class ConvState(NamedTuple):
    """State of a convolution: its last W - 1 inputs."""

    x: Tensor  # (B,W-1,D)
    kind = "conv"


class CumsumMixer(nn.Module):
    """The cumulative sum with fused projections, a norm on the sum and a sigmoid gate.

        y = W_o ( sigmoid(W_g x) * W_q x * normaliser(S) )
        S = running sum of gain * W_k x * W_v x, where gain is 1 for the plain sum

    Options  normaliser   scales the sum, which may grow with length (see NORMALISERS)
             half_lives   (shortest, longest) in steps: every channel forgets at a fixed speed of
                          its own; default: the plain sum
    State    SumState: D numbers
    Cost     time O(T D^2), all of it in the projections; the sum itself is O(T D)
    Paper    QLLK 1.1 for the fused kernel; the output projection and the norm are ours
    Raises   ValueError when half_lives are not two numbers from 0.01 to 1,000,000
    """

    def __init__(
        self,
        d_model: int,
        positions: NoPositions | None = None,
        *,
        normaliser: str = "rms",
        half_lives: Sequence[float] | None = None,
    ):
        super().__init__()
        self.qkvg = nn.Linear(d_model, 4 * d_model, bias=False)
        self.out = ResidualLinear(d_model, d_model, bias=False)
        self.normalise = look_up(NORMALISERS, normaliser, "normaliser")
        decay = None if half_lives is None else log_decays(d_model, *_check_half_lives(half_lives))
        # On input of mean zero, a sum that forgets within a few steps stays small, and one that
        # hardly forgets grows: the gain gives all channels the same size.
        gain = torch.ones(d_model) if decay is None else (1 - (2 * decay).exp()).sqrt()
        self.register_buffer("log_decay", decay, persistent=False)
        self.register_buffer("gain", gain, persistent=False)

    def forward(
        self, x: Tensor, state: SumState | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, SumState]:
        refuse_mask(mask, self)
        S, t = state or (None, 0)
        q, k, v, g = self.qkvg(x).chunk(4, dim=-1)
        sums, S = kernels.running_sum(k * v * self.gain, self.log_decay, S)
        counts = torch.arange(t + 1, t + 1 + x.shape[1], device=x.device)[:, None]  # (T,1)
        y = q * self.normalise(sums, counts) * g.sigmoid()
        return self.out(y.to(q.dtype)), SumState(S, t + x.shape[1])


def log_decays(d_model: int, shortest: float, longest: float) -> Tensor:
    """Log decays whose half-lives, in steps, are evenly spaced on a log scale: (D,)."""
    steps = torch.logspace(math.log2(shortest), math.log2(longest), d_model, base=2.0)
    return -math.log(2.0) / steps


def _check_half_lives(half_lives):
    match half_lives:
        case [int() | float(), int() | float()] if all(0.01 <= x <= 1e6 for x in half_lives):
            return half_lives
    raise ValueError(  # in float32, a channel beyond these is either 0 or the plain sum
        f"half_lives must be two numbers of steps from 0.01 to 1,000,000, got {half_lives!r}"
    )


def _unscaled(sums, counts):
    """The sum itself, which grows with length."""
    return sums


def by_count(sums: Tensor, counts: Tensor) -> Tensor:
    """The mean so far.  Shapes   sums (B,T,D), counts (T,1) -> (B,T,D)"""
    return sums / counts


def by_root(sums: Tensor, counts: Tensor) -> Tensor:
    """The sum divided by sqrt(t): of constant size on input of mean zero, whose sum grows so."""
    return sums * counts.rsqrt()


def by_rms(sums: Tensor, counts: Tensor) -> Tensor:
    """Scaled to root mean square 1 over the channels: keeps the direction and not the size."""
    return F.rms_norm(sums, sums.shape[-1:])


NORMALISERS = {"none": _unscaled, "count": by_count, "root": by_root, "rms": by_rms}


class LinearAttention(nn.Module):
    """Linear attention with a norm on each head and a sigmoid gate: one matrix of key-value
    products per head, which decays at a fixed rate, at one computed from the input, or not at all.

    Options  heads, which must divide d_model
             decay   "none"; "fixed", one speed per head (RetNet); "head" or "channel", computed
                     from the input, one per head (Mamba-2) or per key channel (GLA)
    State    LinearState: D^2 / heads numbers
    Cost     time O(T D (C + D / heads)) in chunks of C
    Paper    Katharopoulos 2020, 2006.16236; RetNet, 2307.08621; GLA, 2312.06635
    """

    def __init__(
        self,
        d_model: int,
        positions: NoPositions | None = None,
        *,
        heads: int,
        decay: str = "none",
    ):
        super().__init__()
        self.heads = check_heads(heads, d_model)
        self.qkvg = nn.Linear(d_model, 4 * d_model, bias=False)
        self.out = ResidualLinear(d_model, d_model, bias=False)
        self.norm = RMSNorm(d_model // heads)
        self.decay = look_up(_DECAYS, decay, "decay")(d_model, heads)

    def forward(
        self, x: Tensor, state: NamedTuple | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, NamedTuple]:
        refuse_mask(mask, self)
        q, k, v, g = split_heads(self.qkvg(x), 4, self.heads)
        o, state = self._recur(x, q, k, v, state.S if state else None)
        return self.out(join_heads(self.norm(o) * g.sigmoid())), state

    def _recur(self, x, q, k, v, S):
        o, S = kernels.linear_attention(q, k, v, self.decay(x), S)
        return o, LinearState(S)


class DeltaRule(LinearAttention):
    """Linear attention that corrects itself: a key's old value is replaced, not added to.

    How far it is replaced is learned: a strength in 0 … 1 per head and step.

    Options  heads, which must divide d_model; decay as in LinearAttention: "none" is DeltaNet,
             "head" gated DeltaNet, "channel" Kimi Delta Attention
    State    DeltaState: D^2 / heads numbers
    Cost     as LinearAttention, and one triangular solve per chunk, O(T C D)
    Paper    DeltaNet, 2406.06484; gated DeltaNet, 2412.06464, without their short convolutions
    """

    def __init__(
        self,
        d_model: int,
        positions: NoPositions | None = None,
        *,
        heads: int,
        decay: str = "none",
    ):
        super().__init__(d_model, positions, heads=heads, decay=decay)
        self.strength = nn.Linear(d_model, heads, bias=False)

    def _recur(self, x, q, k, v, S):
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        beta = self.strength(x).sigmoid().transpose(1, 2)[..., None]  # (B,H,T,1)
        o, S = kernels.delta_rule(q, k, v, beta, self.decay(x), S)
        return o, DeltaState(S)


class _NoDecay(nn.Module):
    """Never forget. Every decay maps x (B,T,D) to log decays (B,H,T,1 or K), or None for zeros."""

    def __init__(self, d_model, heads):
        super().__init__()

    def forward(self, x):
        return None


class _FixedDecay(nn.Module):
    """One fixed decay per head h: a step keeps 1 - 2^-(5+h).  RetNet, 2307.08621, equation 8."""

    def __init__(self, d_model, heads):
        super().__init__()
        speeds = 2.0 ** -(5.0 + torch.arange(heads))
        self.register_buffer("log_decay", torch.log1p(-speeds), persistent=False)

    def forward(self, x):
        return self.log_decay[:, None, None].to(x.dtype).expand(x.shape[0], -1, x.shape[1], 1)


class _HeadDecay(nn.Module):
    """One speed per head, computed from the input."""

    def __init__(self, d_model, heads):
        super().__init__()
        self.heads = heads
        self.speed = nn.Linear(d_model, self.speeds(d_model, heads))

    @staticmethod
    def speeds(d_model, heads):
        return heads

    def forward(self, x):
        # logsigmoid/16 starts near exp(-0.04) a step: a half-life of 16.  GLA, 2312.06635, 4.4.
        log_decay = F.logsigmoid(self.speed(x)) / 16.0
        return log_decay.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class _ChannelDecay(_HeadDecay):
    """One speed per key channel, computed from the input."""

    @staticmethod
    def speeds(d_model, heads):
        return d_model


_DECAYS = {"none": _NoDecay, "fixed": _FixedDecay, "head": _HeadDecay, "channel": _ChannelDecay}


class GatedConv(nn.Module):
    """The local mixer: a causal depthwise convolution with a gate.

        y = W_o ( silu(W_g x) * conv(W_x x) )

    Options  width W, in steps
    State    ConvState: (W-1) D numbers
    Cost     time O(T D^2), all but O(T W D) of it in the projections
    """

    def __init__(self, d_model: int, positions: NoPositions | None = None, *, width: int):
        super().__init__()
        check_positive("a convolution", width=width)
        self.xg = nn.Linear(d_model, 2 * d_model, bias=False)
        self.taps = nn.Parameter(torch.randn(width, d_model) * width**-0.5)
        self.out = ResidualLinear(d_model, d_model, bias=False)

    def forward(
        self, x: Tensor, state: ConvState | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, ConvState]:
        refuse_mask(mask, self)
        x, g = self.xg(x).chunk(2, dim=-1)
        y, past = kernels.causal_conv(x, self.taps, state.x if state else None)
        return self.out(F.silu(g) * y), ConvState(past)
