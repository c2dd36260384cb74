"""RWKV-4 and RWKV-7 as mixers: time mixing, and channel mixing, which stands in place of an MLP.

Channel mixing looks back one step, so it has a state and is a mixer like any other. An RWKV has
both in turn, in blocks that have no MLP: `mixers=(("rwkv4", {}), ("rwkv4-channel", {}))` and
`mlp=("none", {})`. In the published models the first values of some weights depend on the layer;
a mixer does not know its layer, so here they are those of the middle layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_positive
from .layers import ResidualLinear, SquaredReluMLP, check_heads, join_heads
from .masks import Mask, refuse_mask
from .positions import NoPositions
from .wkv import generalised_delta_rule, wkv


class RWKV4State(NamedTuple):
    """State of RWKV-4's time mixing: the last input, and `wkv`'s average of all before."""

    x: Tensor  # (B,D)
    logsum: Tensor  # (B,D)
    mean: Tensor  # (B,D)
    kind = "rwkv4"


class RWKV7State(NamedTuple):
    """State of RWKV-7's time mixing: the last input, and one K x V matrix per head."""

    x: Tensor  # (B,D)
    S: Tensor  # (B,H,K,V)
    kind = "rwkv7"


class RWKV4ChannelState(NamedTuple):
    """State of RWKV-4's channel mixing: the last input."""

    x: Tensor  # (B,D)
    kind = "rwkv4-channel"


class RWKV7ChannelState(NamedTuple):
    """State of RWKV-7's channel mixing: the last input."""

    x: Tensor  # (B,D)
    kind = "rwkv7-channel"


class TokenShift(nn.Module):
    """Move each step towards the one before it, by a learned share of each channel.

        y_t = x_t + share (x_{t-1} - x_t)

    There is one y for each of `powers`; the larger the power, the larger the shares at the start,
    which fall from 1 in the first channel to almost 0 in the last.

    Shapes   x (B,T,D), last (B,D), default: zeros  ->  a list of y (B,T,D), last (B,D)
    State    the last input: D numbers
    Cost     time O(T D) for each y
    """

    def __init__(self, d_model: int, powers: Sequence[float]):
        super().__init__()
        channels = torch.arange(d_model) / d_model
        self.shares = nn.ParameterList(1 - channels**power for power in powers)

    def forward(self, x: Tensor, last: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        last = torch.zeros_like(x[:, 0]) if last is None else last.to(x.dtype)
        change = torch.cat((last[:, None], x[:, :-1]), dim=1) - x
        return [x + share * change for share in self.shares], x[:, -1].clone()


class RWKV4TimeMix(nn.Module):
    """RWKV-4's time mixing: a fading average of values in each channel, with a sigmoid gate.

        y = W_o ( sigmoid(W_r x^r) * wkv(W_k x^k, W_v x^v) )

    x^r, x^k and x^v are x after a token shift. Each channel has a learned speed of fading and a
    learned bonus for the newest value.

    State    RWKV4State: 3 D numbers
    Cost     time O(T D^2), all but O(T D) of it in the projections
    Paper    RWKV, Peng 2023, 2305.13048, time mixing; speeds and bonuses start as in its code
    """

    def __init__(self, d_model: int, positions: NoPositions | None = None):
        super().__init__()
        self.shift = TokenShift(d_model, (0.5, 0.5, 0.25))
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.receptance = nn.Linear(d_model, d_model, bias=False)
        self.out = ResidualLinear(d_model, d_model, bias=False)
        self.log_speed = nn.Parameter(8 * torch.linspace(0, 1, d_model) ** 1.35 - 5)
        self.bonus = nn.Parameter((torch.arange(1, d_model + 1) % 3 - 1) / 2 + math.log(0.3))

    def forward(
        self, x: Tensor, state: RWKV4State | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, RWKV4State]:
        refuse_mask(mask, self)
        last, logsum, mean = state or (None, None, None)
        (k, v, r), last = self.shift(x, last)
        k, v, r = self.key(k), self.value(v), self.receptance(r)
        o, logsum, mean = wkv(k, v, -self.log_speed.exp(), self.bonus, logsum, mean)
        return self.out(r.sigmoid() * o.to(r.dtype)), RWKV4State(last, logsum, mean)


class RWKV7TimeMix(nn.Module):
    """RWKV-7's time mixing: a matrix state per head from which one key removes and another adds.

        k' = k + (a-1) m k      o = generalised_delta_rule(r, k', v, c k / |c k|, a, g)
        y = W_o ( gate * (norm(o) + (b r . k') v) )

    r, k and v are projections of x after a token shift. The log decay g, the rate a in 0 … 1 and
    the gate are computed from x through `rank` numbers each; c, m and b are one number per channel.
    The paper's value residual, which mixes the first layer's values into those of every other
    layer, is left out: a mixer would have to be given the values of another.

    Options  heads, which must divide d_model
             rank   the width of the matrices that compute g, a and the gate
    State    RWKV7State: D + D^2 / heads numbers
    Cost     time O(T D (D + rank + C + D / heads)) in chunks of C
    Paper    RWKV-7, Peng 2025, 2503.14456, time mixing; what is one number per channel starts as
             in its code
    Raises   ValueError when heads do not divide d_model, or rank is below one
    """

    def __init__(
        self, d_model: int, positions: NoPositions | None = None, *, heads: int, rank: int
    ):
        super().__init__()
        self.heads = check_heads(heads, d_model)
        check_positive("rwkv7", rank=rank)
        self.shift = TokenShift(d_model, (0.1, 0.45, 0.35, 0.35, 0.45, 0.1))
        self.receptance = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.decay = _low_rank(d_model, rank, nn.Tanh())
        self.rate = _low_rank(d_model, rank, nn.Identity())
        self.gate = _low_rank(d_model, rank, nn.Sigmoid())
        self.norm = nn.GroupNorm(heads, d_model, eps=64e-5)
        self.out = ResidualLinear(d_model, d_model, bias=False)
        of_all = torch.linspace(0, 1, d_model)
        of_head = torch.linspace(-1, 1, d_model // heads).repeat(heads)
        of_head = of_head * of_head.abs()
        self.decay_bias = nn.Parameter(6 * of_all**1.8 - 5.5 + 2.5 * of_head)
        self.rate_bias = nn.Parameter(0.4 * of_all + 0.3 * of_head - 0.39)
        self.removal = nn.Parameter(0.76 - 0.1 * of_all)
        self.replacement = nn.Parameter(torch.full((d_model,), 1.02))
        self.bonus = nn.Parameter(torch.full((d_model,), -0.04))

    def forward(
        self, x: Tensor, state: RWKV7State | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, RWKV7State]:
        refuse_mask(mask, self)
        last, S = state or (None, None)
        (r, g, k, v, a, gate), last = self.shift(x, last)
        r, k, v = self.receptance(r), self.key(k), self.value(v)
        # No log decay is below -exp(-1/2), which is well within the limit of the kernel.
        g = -math.exp(-0.5) * (self.decay_bias + self.decay(g)).sigmoid()
        a = (self.rate_bias + self.rate(a)).sigmoid()
        removal, k = k * self.removal, k * (1 + (a - 1) * self.replacement)
        match = r * k * self.bonus
        r, k, v, removal, a, g, match = map(self._split, (r, k, v, removal, a, g, match))
        o, S = generalised_delta_rule(r, k, v, F.normalize(removal, dim=-1), a, g, S)
        o = self.norm(join_heads(o).flatten(0, 1).to(self.norm.weight.dtype)).view_as(x)
        o = o + join_heads(match.sum(dim=-1, keepdim=True) * v)
        return self.out(o * self.gate(gate)), RWKV7State(last, S)

    def _split(self, x):
        """Shapes   (B,T,D) -> (B,H,T,K)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _low_rank(d_model, rank, activation):
    return nn.Sequential(
        nn.Linear(d_model, rank, bias=False), activation, nn.Linear(rank, d_model, bias=False)
    )


class RWKV7ChannelMix(nn.Module):
    """RWKV-7's channel mixing: an MLP with a squared ReLU, on x after a token shift.

        y = W_v relu(W_k x^k)^2

    Options  ratio   the hidden width, as a multiple of d_model
    State    RWKV7ChannelState: D numbers
    Cost     time O(T D^2 ratio)
    Paper    RWKV-7, Peng 2025, 2503.14456, the MLP
    """

    powers = (0.5,)

    def __init__(self, d_model: int, positions: NoPositions | None = None, *, ratio: float = 4):
        super().__init__()
        self.shift = TokenShift(d_model, self.powers)
        self.mlp = SquaredReluMLP(d_model, ratio=ratio)

    def forward(
        self, x: Tensor, state: NamedTuple | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, NamedTuple]:
        refuse_mask(mask, self)
        (k,), last = self.shift(x, state and state.x)
        return self.mlp(k), RWKV7ChannelState(last)


class RWKV4ChannelMix(RWKV7ChannelMix):
    """RWKV-4's channel mixing: the same with a sigmoid gate, the receptance.

        y = sigmoid(W_r x^r) * W_v relu(W_k x^k)^2

    Options  ratio   the hidden width, as a multiple of d_model
    State    RWKV4ChannelState: D numbers
    Cost     time O(T D^2 ratio)
    Paper    RWKV, Peng 2023, 2305.13048, channel mixing
    """

    powers = (0.5, 0.5)

    def __init__(self, d_model: int, positions: NoPositions | None = None, *, ratio: float = 4):
        super().__init__(d_model, positions, ratio=ratio)
        self.receptance = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self, x: Tensor, state: NamedTuple | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, NamedTuple]:
        refuse_mask(mask, self)
        (k, r), last = self.shift(x, state and state.x)
        return self.receptance(r).sigmoid() * self.mlp(k), RWKV4ChannelState(last)
