"""Attention layers. They keep individual keys, so a mask can hide any of them.

`mixers` describes the signature that they share with the recurrent layers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..checks import check_positive, look_up
from . import kernels
from .layers import NORMS, ResidualLinear, check_heads, join_heads, split_heads
from .masks import Mask
from .positions import NoPositions


class KVState(NamedTuple):
    """State of softmax attention: the visible keys and values, and the number of steps read."""

    k: Tensor  # (B,H,N,K)
    v: Tensor  # (B,H,N,K)
    t: int
    kind = "softmax"


class CrossState(NamedTuple):
    """State of cross attention: the source's keys and values, and where it is not padding.

    It has no `kind`, since it remembers the source and not the sequence that the layer mixes.
    """

    k: Tensor  # (B,H,N,K)
    v: Tensor  # (B,H,N,K)
    text: Tensor | None  # (B,N) bool, False for padding; None: no padding


class LatentState(NamedTuple):
    """State of latent attention: what keys and values are computed from, and the number of steps
    read.
    """

    c: Tensor  # (B,N,L), the latents
    r: Tensor  # (B,N,U), the channels of the keys that all heads share, already rotated
    t: int
    kind = "latent"


class Attention(nn.Module):
    """Base class of attention layers, which work in two steps: `project_qkv` makes queries, keys,
    values and the mask that applies to them; `attend` averages the values. `LatentAttention`
    stores no keys and overrides `weights` instead.
    """

    def weights(self, x: Tensor, state=None, mask: Mask | None = None) -> Tensor:
        """The weight of each key for each query: what `attend` returns for one-hot values.

        Shapes   x, state and mask as for forward  ->  (B,H,T,N), each row adding up to 1
        """
        q, k, _, mask = self.project_qkv(x, state, mask)
        return self.attend(q, k, _one_hot_values(k), mask)


class _SelfAttention(Attention):
    """Base class of attention from a sequence to itself: heads, projections and positions."""

    def __init__(
        self,
        d_model: int,
        positions: NoPositions | None = None,
        *,
        heads: int,
        kv_heads: int | None = None,
        bias: bool = False,
    ):
        super().__init__()
        self.heads = check_heads(heads, d_model)
        self.kv_heads = _check_kv_heads(kv_heads, heads)
        positions = positions or NoPositions(d_model)
        # Bound methods, and not the module itself: the model registers it, once for all layers.
        self.rotate, self.score_bias = positions.rotate, positions.bias
        self.qkv = nn.Linear(d_model, (heads + 2 * self.kv_heads) * (d_model // heads), bias=bias)
        self.out = ResidualLinear(d_model, d_model, bias=bias)

    def split_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B,H,T,K), and keys and values of as many heads as have their own."""
        parts = self.qkv(x).unflatten(-1, (self.heads + 2 * self.kv_heads, -1)).transpose(1, 2)
        return parts.split((self.heads, self.kv_heads, self.kv_heads), dim=1)

    def share(self, x: Tensor) -> Tensor:
        """Keys or values for every head: each is shared by neighbouring heads."""
        if self.kv_heads == self.heads:
            return x
        return x.repeat_interleave(self.heads // self.kv_heads, dim=1)


class SoftmaxAttention(_SelfAttention):
    """Every query attends to all positions up to its own, or to the last `window` and the sinks.

    Options  heads    must divide d_model
             kv_heads  number of heads with keys and values of their own, shared by groups of the
                       others (grouped-query attention); default: all
             window   in steps; default: no limit
             sinks    number of first steps that stay visible outside the window
             tile     compute in tiles of this size, slowly and in Python (see
                      `kernels.tiled_attention`); default: torch's fused kernel
             bias     whether the projections have a bias
    Raises   ValueError when window, sinks, tile, positions and mask cannot be combined
    State    KVState: 2 D kv_heads / heads numbers per visible step; with a window at most
             W - 1 + sinks steps
    Cost     time O(T N D) for N keys; each call also copies the cache, in O(N D)
    Paper    Vaswani 2017, 1706.03762; sinks: StreamingLLM, Xiao 2023, 2309.17453; shared keys:
             grouped-query attention, Ainslie 2023, 2305.13245
    """

    def __init__(
        self,
        d_model: int,
        positions: NoPositions | None = None,
        *,
        heads: int,
        kv_heads: int | None = None,
        window: int | None = None,
        sinks: int = 0,
        tile: int | None = None,
        bias: bool = False,
    ):
        super().__init__(d_model, positions, heads=heads, kv_heads=kv_heads, bias=bias)
        self.mask, self.tile = Mask(window=window, sinks=sinks), _check_tile(tile, window)
        if (sinks or tile) and self.score_bias(heads, 1, 1) is not None:
            raise ValueError(
                "relative position biases cannot be combined with sinks, whose distance is lost "
                "when steps after them are evicted, or with tiles, which take no bias; got "
                f"sinks={sinks}, tile={tile}. Use rotary positions or none"
            )

    def forward(
        self, x: Tensor, state: KVState | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, KVState]:
        q, k, v, mask = self.project_qkv(x, state, mask)
        o = self.attend(q, k, v, mask)
        if self.mask.window:
            k, v = self._evict(k), self._evict(v)
        return self.out(join_heads(o)), KVState(k, v, _step(state) + x.shape[1])

    def project_qkv(
        self, x: Tensor, state: KVState | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Mask]:
        if mask is not None and not mask.plain and (self.mask.sinks or self.tile):
            raise ValueError(
                "attention with sinks or tiles cannot be masked, for example to keep documents "
                f"apart; got sinks={self.mask.sinks}, tile={self.tile}. Build it without them"
            )
        q, k, v = self.split_qkv(x)
        q, k = self.rotate(q, _step(state)), self.rotate(k, _step(state))
        if state:
            k, v = torch.cat((state.k, k), dim=2), torch.cat((state.v, v), dim=2)
        return q, k, v, _combine(self.mask, mask)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        k, v = self.share(k), self.share(v)
        if self.tile:
            return kernels.tiled_attention(q, k, v, self.tile)
        bias = self.score_bias(self.heads, q.shape[2], k.shape[2])
        return kernels.causal_attention(q, k, v, mask, bias)

    def _evict(self, x):
        """Keep the sinks and the last W - 1 steps; the next query adds its own key as the W-th."""
        window, sinks = self.mask.window, self.mask.sinks
        start = max(sinks, x.shape[2] - window + 1)
        return torch.cat((x[:, :, :sinks], x[:, :, start:]), dim=2)


class BidirectionalAttention(_SelfAttention):
    """Every query attends to all positions, before and after its own: for encoders.

    A mask replaces the default, `Mask(causal=False)`, so it must not be causal itself.

    Options  heads, which must divide d_model; bias, whether the projections have one
    State    none: a bidirectional layer cannot be continued
    Cost     time O(T^2 D)
    Paper    BERT, Devlin 2018, 1810.04805
    """

    def forward(
        self, x: Tensor, state: None = None, mask: Mask | None = None
    ) -> tuple[Tensor, None]:
        return self.out(join_heads(self.attend(*self.project_qkv(x, state, mask)))), None

    def project_qkv(
        self, x: Tensor, state: None = None, mask: Mask | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Mask]:
        q, k, v = self.split_qkv(x)
        return self.rotate(q, 0), self.rotate(k, 0), v, mask or Mask(causal=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        T, N = q.shape[2], k.shape[2]
        return kernels.fused_attention(
            q, k, v, mask.table(T, N, q.device), self.score_bias(self.heads, T, N)
        )


class CrossAttention(Attention):
    """Every query attends to another sequence, the source, which `init_state` projects once.

    Options  heads, which must divide d_model; bias, whether the projections have one
    State    CrossState: 2 D numbers per step of the source, for any T, and where it is padding
    Cost     time O(T N D) for a source of N steps
    Paper    Vaswani 2017, 1706.03762, 3.2.3
    Raises   ValueError when given a mask: the state contains it
    """

    def __init__(self, d_model: int, *, heads: int, bias: bool = False):
        super().__init__()
        self.heads = check_heads(heads, d_model)
        self.q = nn.Linear(d_model, d_model, bias=bias)
        self.kv = nn.Linear(d_model, 2 * d_model, bias=bias)
        self.out = ResidualLinear(d_model, d_model, bias=bias)

    def init_state(self, source: Tensor, text: Tensor | None = None) -> CrossState:
        """Project the source to keys and values: the state that `forward` reads.

        Shapes   source (B,N,D), text (B,N) bool, False for padding; default: no padding
        """
        return CrossState(*split_heads(self.kv(source), 2, self.heads), text)

    def forward(
        self, x: Tensor, state: CrossState, mask: Mask | None = None
    ) -> tuple[Tensor, CrossState]:
        return self.out(join_heads(self.attend(*self.project_qkv(x, state, mask)))), state

    def project_qkv(
        self, x: Tensor, state: CrossState, mask: Mask | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Mask]:
        if mask is not None:
            raise ValueError(
                f"cross attention takes its mask from its state, got {mask}; pass the source's "
                "padding as text to init_state"
            )
        (q,) = split_heads(self.q(x), 1, self.heads)
        return q, state.k, state.v, Mask(causal=False, text=state.text)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        return kernels.fused_attention(q, k, v, mask.table(q.shape[2], k.shape[2], q.device))


class LatentAttention(Attention):
    """Multi-head latent attention (MLA): stores a latent per step, not keys and values per head.

        c = norm(W_c x)      r = rotate(W_r x)      k_h = [W_k,h c, r]      v_h = W_v,h c

    Positions rotate only r and the last `d_rope` channels of each query: a rotation between W_q and
    W_k would prevent merging them, which the absorbed form relies on.

    Options  heads      any number: their widths do not depend on d_model
             d_latent   L, width of the latent
             d_nope     K, channels of each head's queries and keys that carry no position
             d_rope     U, channels that positions may rotate; all heads share those of the keys
             d_value    V, channels of each head's values
             d_query    width of a latent that queries are computed from; default: no such latent
             norm       of the latents (see NORMS)
    State    LatentState: L + U numbers per step
    Cost     time O(T D H (K + U + V)), and that of `kernels.latent_attention` for the first call
             on a sequence, of `kernels.absorbed_attention` for later calls, which are short
    Paper    DeepSeek-V2, 2405.04434, 2.1; compressed queries: equations 12 and 13
    Raises   ValueError when a size is below one
    """

    def __init__(
        self,
        d_model: int,
        positions: NoPositions | None = None,
        *,
        heads: int,
        d_latent: int,
        d_nope: int,
        d_rope: int,
        d_value: int,
        d_query: int | None = None,
        norm: str = "rms",
    ):
        super().__init__()
        sizes = {"d_latent": d_latent, "d_nope": d_nope, "d_rope": d_rope, "d_value": d_value}
        check_positive("latent attention", heads=heads, **sizes)
        self.heads, self.d_latent = heads, d_latent
        self.d_nope, self.d_rope = d_nope, d_rope
        self.rotate = (positions or NoPositions(d_model)).rotate  # the model owns the module
        norm = look_up(NORMS, norm, "norm")
        self.query = _query_projection(d_model, d_query, heads * (d_nope + d_rope), norm)
        self.down = nn.Linear(d_model, d_latent + d_rope, bias=False)
        self.norm = norm(d_latent)
        self.up = nn.Linear(d_latent, heads * (d_nope + d_value), bias=False)
        self.out = ResidualLinear(heads * d_value, d_model, bias=False)

    def forward(
        self, x: Tensor, state: LatentState | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, LatentState]:
        q, c, r = self.project_latent(x, state)
        attend = kernels.absorbed_attention if state else kernels.latent_attention
        o = attend(q, c, r, *self.split_up(), _combine(Mask(), mask))
        return self.out(join_heads(o)), LatentState(c, r, _step(state) + x.shape[1])

    def weights(
        self, x: Tensor, state: LatentState | None = None, mask: Mask | None = None
    ) -> Tensor:
        q, c, r = self.project_latent(x, state)
        k = kernels.latent_keys(c, r, self.split_up()[0])
        return kernels.causal_attention(q, k, _one_hot_values(k), _combine(Mask(), mask))

    def project_latent(
        self, x: Tensor, state: LatentState | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries (B,H,T,K+U), latents c (B,N,L) and shared key channels r (B,N,U)."""
        t = _step(state)
        (q,) = split_heads(self.query(x), 1, self.heads)
        nope, rope = q.split((self.d_nope, self.d_rope), dim=-1)
        q = torch.cat((nope, self.rotate(rope, t)), dim=-1)
        c, r = self.down(x).split((self.d_latent, self.d_rope), dim=-1)
        c, r = self.norm(c), self.rotate(r[:, None], t)[:, 0]
        if state:
            c, r = torch.cat((state.c, c), dim=1), torch.cat((state.r, r), dim=1)
        return q, c, r

    def split_up(self) -> tuple[Tensor, Tensor]:
        """The weights of `up` by head, for keys and for values.  Shapes   -> (H,K,L), (H,V,L)"""
        heads = self.up.weight.unflatten(0, (self.heads, -1))
        return heads.split((self.d_nope, heads.shape[1] - self.d_nope), dim=1)


def _query_projection(d_model, d_query, width, norm):
    """W_q, or W_uq norm(W_dq x) through a latent of d_query.  Shapes  (B,T,D) -> (B,T,width)"""
    if d_query is None:
        return nn.Linear(d_model, width, bias=False)
    check_positive("latent attention", d_query=d_query)
    down, up = nn.Linear(d_model, d_query, bias=False), nn.Linear(d_query, width, bias=False)
    return nn.Sequential(down, norm(d_query), up)


def _combine(own: Mask, given: Mask | None) -> Mask:
    """A causal layer's own mask, with the documents and the padding of the one it is given."""
    if given is None:
        return own
    if given.window is not None:
        raise ValueError(
            f"the window and sinks of a mixer are options of its own, got a mask with "
            f"window={given.window}, sinks={given.sinks}. Build the mixer with them, and give it a "
            "mask of documents or padding only"
        )
    return replace(own, documents=given.documents, text=given.text)


def _check_kv_heads(kv_heads, heads) -> int:
    """Return the number of heads with keys of their own, by default all.

    Raises   ValueError when it is not a whole number above 0 that divides the heads
    """
    if kv_heads is None:
        return heads
    check_positive("attention", kv_heads=kv_heads)
    if heads % kv_heads:
        raise ValueError(f"kv_heads={kv_heads} must divide heads={heads}")
    return kv_heads


def _check_tile(tile, window):
    if tile is not None:
        check_positive("attention", tile=tile)
        if window is not None:
            raise ValueError(
                f"tiled attention has no window, got tile={tile}, window={window}; set one of them"
            )
    return tile


def _step(state) -> int:
    """The number of steps read so far."""
    return state.t if state else 0


def _one_hot_values(k):
    """A value for each key that identifies it.  Shapes   k (B,H,N,K) -> (B,H,N,N)"""
    return torch.eye(k.shape[2]).to(k).expand(*k.shape[:2], -1, -1)
