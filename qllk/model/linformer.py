"""Linformer: attention to a few learned summaries of the keys, as published and without a leak."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_positive
from .attention import BidirectionalAttention
from .kernels import fused_attention, softmax_attention_loop
from .layers import ResidualLinear, check_heads, join_heads, split_heads
from .masks import Mask, refuse_mask
from .positions import NoPositions


class LinformerState(NamedTuple):
    """State of a causal Linformer: summaries of the complete blocks, and the open block's keys."""

    k: Tensor  # (B,H,M,K), the slots: r for each complete block
    v: Tensor  # (B,H,M,K)
    open_k: Tensor  # (B,H,N,K), N < R
    open_v: Tensor  # (B,H,N,K)
    t: int
    kind = "linformer"


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    to_k: Tensor,
    to_v: Tensor,
    slots_k: Tensor | None = None,
    slots_v: Tensor | None = None,
    open_k: Tensor | None = None,
    open_v: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Attend to the own block's keys, and to r weighted sums of each complete block of R keys.

        block i:  k^_i = E k_i, v^_i = F v_i        o_t = softmax attention of q_t to all k^_i of
        the blocks that ended before its own, and to the keys of its own block up to t

    Shapes   q, k, v (B,H,T,K)   to_k E, to_v F (r,R)
             slots_k, slots_v (B,H,M,K), open_k, open_v (B,H,N,K): sums of the blocks before, and
             keys and values of the open one, N < R; default: none
             ->   o (B,H,T,K), and the four for what follows
    State    2 H K (M + N) numbers, for M = r floor(t / R) and N = t mod R: it grows, R / r times
             slower than a cache of all keys
    Cost     time O(T (R + T r / R) K), memory O(T (R + T r / R))
    Twin     block_attention_loop, equal to 1e-12 in float64
    """
    (r, R), (B, H, T, _) = to_k.shape, q.shape
    slots_k, slots_v, open_k, open_v = _start(k, slots_k, slots_v, open_k, open_v)
    before, old = open_k.shape[2], slots_k.shape[2]
    k, v = torch.cat((open_k, k), dim=2), torch.cat((open_v, v), dim=2)  # from a block's start on
    complete, blocks = k.shape[2] // R, -(-k.shape[2] // R)
    slots_k = torch.cat((slots_k, _summarise(to_k, k, complete)), dim=2)
    slots_v = torch.cat((slots_v, _summarise(to_v, v, complete)), dim=2)

    def by_block(x, first=0):
        padding = (0, 0, first, blocks * R - first - x.shape[2])
        return F.pad(x, padding).unflatten(2, (blocks, R))  # (B,H,blocks,R,K)

    def with_slots(slots, own):
        return torch.cat((slots[:, :, None].expand(-1, -1, blocks, -1, -1), own), dim=3)

    own = torch.ones(R, R, dtype=torch.bool, device=q.device).tril().expand(blocks, -1, -1)
    ended = old + r * torch.arange(blocks, device=q.device)  # slots before each block
    known = torch.arange(slots_k.shape[2], device=q.device) < ended[:, None]  # (blocks,M)
    mask = torch.cat((known[:, None].expand(-1, R, -1), own), dim=-1)  # (blocks,R,M+R)
    read = by_block(q, before), with_slots(slots_k, by_block(k)), with_slots(slots_v, by_block(v))
    o = fused_attention(*(x.flatten(0, 1) for x in read), mask)
    o = o.unflatten(0, (B, H)).flatten(2, 3)[:, :, before : before + T]
    rest = complete * R
    return o, slots_k, slots_v, k[:, :, rest:], v[:, :, rest:]


def block_attention_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    to_k: Tensor,
    to_v: Tensor,
    slots_k: Tensor | None = None,
    slots_v: Tensor | None = None,
    open_k: Tensor | None = None,
    open_v: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The definition of `block_attention`."""
    slots_k, slots_v, open_k, open_v = _start(k, slots_k, slots_v, open_k, open_v)
    outputs = []
    for t in range(q.shape[2]):
        open_k = torch.cat((open_k, k[:, :, t : t + 1]), dim=2)
        open_v = torch.cat((open_v, v[:, :, t : t + 1]), dim=2)
        keys = torch.cat((slots_k, open_k), dim=2)
        values = torch.cat((slots_v, open_v), dim=2)
        outputs.append(softmax_attention_loop(q[:, :, t : t + 1], keys, values))
        if open_k.shape[2] == to_k.shape[1]:
            slots_k = torch.cat((slots_k, to_k @ open_k), dim=2)
            slots_v = torch.cat((slots_v, to_v @ open_v), dim=2)
            open_k, open_v = open_k[:, :, :0], open_v[:, :, :0]
    return torch.cat(outputs, dim=2), slots_k, slots_v, open_k, open_v


def _start(k, *state):
    """No keys for each part of the state that is missing."""
    return [k[:, :, :0] if part is None else part for part in state]


def _summarise(weights, x, blocks):
    """r weighted sums of each complete block.  Shapes   (r,R), (B,H,N,K) -> (B,H,blocks r,K)"""
    R = weights.shape[1]
    return (weights @ x[:, :, : blocks * R].unflatten(2, (blocks, R))).flatten(2, 3)


class Linformer(nn.Module):
    """Linformer without a leak: attention to summaries of complete blocks and to the own block.

    The published layer multiplies all keys of a text by one matrix over its positions. Every
    summary then contains every key, those to come included, and no mask can take them out again;
    and the length of the text is fixed. Here each complete block is summarised by itself.

    Options  heads, which must divide d_model
             block   R, steps per block
             slots   r, summaries of a block
    State    LinformerState, which grows by 2 D r / R numbers a step
    Cost     time O(T D (D + R + T r / R))
    Paper    Wang 2020, 2006.04768, equation 7, with projections shared by all heads; the blocks
             are ours
    """

    def __init__(
        self,
        d_model: int,
        positions: NoPositions | None = None,
        *,
        heads: int,
        block: int,
        slots: int,
    ):
        super().__init__()
        check_positive("linformer", block=block, slots=slots)
        self.heads = check_heads(heads, d_model)
        self.rotate = (positions or NoPositions(d_model)).rotate  # the model owns the module
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.to_k, self.to_v = (nn.Parameter(_averages(slots, block)) for _ in range(2))
        self.out = ResidualLinear(d_model, d_model, bias=False)

    def forward(
        self, x: Tensor, state: LinformerState | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, LinformerState]:
        refuse_mask(mask, self)
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        *before, t = state or (0,)
        q, k = self.rotate(q, t), self.rotate(k, t)
        o, *after = block_attention(q, k, v, self.to_k, self.to_v, *before)
        return self.out(join_heads(o)), LinformerState(*after, t + x.shape[1])


class BidirectionalLinformer(BidirectionalAttention):
    """Linformer as published: all keys of a text, as `slots` learned weighted sums. For encoders.

        o = softmax(q (E k)^T / sqrt(K)) (F v)

    Options  heads    must divide d_model
             context  the longest text; a shorter one uses the first columns of E and F
             slots    how many sums
    State    none: a bidirectional layer cannot be continued
    Cost     time O(T D (D + slots)), memory O(T slots)
    Paper    Wang 2020, 2006.04768, equation 7, with projections shared by all heads
    Raises   ValueError when the text is longer than the context, or single positions are masked
    """

    def __init__(
        self,
        d_model: int,
        positions: NoPositions | None = None,
        *,
        heads: int,
        context: int,
        slots: int,
    ):
        super().__init__(d_model, positions, heads=heads)
        check_positive("linformer", context=context, slots=slots)
        self.to_k, self.to_v = (nn.Parameter(_averages(slots, context)) for _ in range(2))

    def project_qkv(
        self, x: Tensor, state: None = None, mask: Mask | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Mask]:
        refuse_mask(mask, self)
        q, k, v, mask = super().project_qkv(x, state)
        T, context = x.shape[1], self.to_k.shape[1]
        if context < T:
            raise ValueError(
                f"this linformer sums up texts of at most {context} ids, got {T}; shorten the "
                "text, or build it with a larger context"
            )
        return q, self.to_k[:, :T] @ k, self.to_v[:, :T] @ v, mask


def _averages(slots, size):
    """Each slot an average of its own part of the positions: (slots,size)."""
    parts = torch.arange(size) * slots // size
    member = (parts == torch.arange(slots)[:, None]).float()
    return member / member.sum(dim=1, keepdim=True).clamp(min=1)
