"""Two relatives of linear attention as they were published: the first one, and RetNet's."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_positive
from . import kernels
from .layers import ResidualLinear, check_heads, join_heads, split_heads
from .masks import Mask, refuse_mask
from .positions import NoPositions, Rotary


class NormalisedState(NamedTuple):
    """State of the linear Transformer: a matrix per head, whose last column adds up the keys."""

    S: Tensor  # (B,H,K,V+1)
    kind = "linear-2020"


class RetentionState(NamedTuple):
    """State of retention: one K x V matrix per head, and the number of steps read."""

    S: Tensor  # (B,H,K,V)
    t: int
    kind = "retention"


class LinearTransformer(nn.Module):
    """Linear attention as first published: a feature map above zero, and a normaliser.

        o_t = phi(q_t) S_t / phi(q_t) z_t      S_t = S_{t-1} + phi(k_t)^T v_t      phi = elu + 1
        z_t = z_{t-1} + phi(k_t)

    Each output is an average of the values, as in softmax attention, by weights phi(q) phi(k).

    Options  heads, which must divide d_model
    State    NormalisedState: D (D / heads + 1) numbers
    Cost     time O(T D (C + D / heads)) in chunks of C
    Paper    Katharopoulos 2020, 2006.16236, equations 7, 18 and 19
    """

    def __init__(self, d_model: int, positions: NoPositions | None = None, *, heads: int):
        super().__init__()
        self.heads = check_heads(heads, d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = ResidualLinear(d_model, d_model, bias=False)

    def forward(
        self, x: Tensor, state: NormalisedState | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, NormalisedState]:
        refuse_mask(mask, self)
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        counted = torch.cat((v, torch.ones_like(v[..., :1])), dim=-1)  # z is one more column of S
        o, S = kernels.linear_attention(q, k, counted, S=state.S if state else None)
        o = o[..., :-1] / o[..., -1:]
        return self.out(join_heads(o.to(q.dtype))), NormalisedState(S)


class Retention(nn.Module):
    """RetNet's retention: linear attention that fades at one fixed speed per head.

        o_t = q_t S_t      S_t = (1 - 2^-(5+h)) S_{t-1} + k_t^T v_t        h = 0 … heads - 1
        y = W_o ( silu(W_g x) * norm(o) )

    Queries and keys are rotated by their positions. The norm is taken in each head by itself,
    without weights; it takes the place of a normaliser.

    Options  heads, which must divide d_model
             expand  width of all values together, as a multiple of d_model
    State    RetentionState: expand D^2 / heads numbers
    Cost     time O(T expand D (D + C)) in chunks of C
    Paper    RetNet, Sun 2023, 2307.08621, equations 5 to 8
    """

    def __init__(
        self, d_model: int, positions: NoPositions | None = None, *, heads: int, expand: int = 2
    ):
        super().__init__()
        self.heads = check_heads(heads, d_model)
        check_positive("retention", expand=expand)
        self.qk = nn.Linear(d_model, 2 * d_model, bias=False)
        self.vg = nn.Linear(d_model, 2 * expand * d_model, bias=False)
        self.out = ResidualLinear(expand * d_model, d_model, bias=False)
        self.rotate = Rotary(d_model).rotate
        speeds = 2.0 ** -(5.0 + torch.arange(heads))
        self.register_buffer("log_decay", torch.log1p(-speeds)[:, None, None], persistent=False)

    def forward(
        self, x: Tensor, state: RetentionState | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, RetentionState]:
        refuse_mask(mask, self)
        S, t = state or (None, 0)
        q, k = split_heads(self.qk(x), 2, self.heads)
        v, g = split_heads(self.vg(x), 2, self.heads)
        q, k = self.rotate(q, t), self.rotate(k * k.shape[-1] ** -0.5, t)
        log_decay = self.log_decay.to(x.dtype).expand(len(x), -1, x.shape[1], 1)
        o, S = kernels.linear_attention(q, k, v, log_decay, S)
        o = F.layer_norm(o, o.shape[-1:]).to(g.dtype)
        return self.out(join_heads(F.silu(g) * o)), RetentionState(S, t + x.shape[1])
