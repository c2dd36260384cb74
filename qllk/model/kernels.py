"""Operations that mix a sequence over time, as pure functions, next to the loops that define them.

Axes     B batch, T time, D model width, H heads, K key width, V value width, W window, C chunk,
         S state; N keys, L latent width, U width of the key that all heads share.
Decay    a log decay is at most 0; 0 forgets nothing.
State    what came before, as a value; None at the start of a sequence. A new state is returned,
         and the one passed in stays valid.
Twins    `name_loop` is the definition, one step at a time: slow, obvious, trusted. The tests
         require each fast form to equal it in outputs, final state and every gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .masks import Mask, causal_mask


def _disable_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context that computes in the inputs' own precision, even inside an autocast.

    The meta device, which computes shapes only, has no autocast.
    """
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _widen(x: Tensor) -> Tensor:
    """Cast to float32, unless x is wider already: sums in half precision soon stop growing."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# ---------------------------------------------------------------- the cumulative sum


def running_sum(
    x: Tensor, log_decay: Tensor | None = None, S: Tensor | None = None, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """Add up a sequence, forgetting at fixed speeds, or at each step at another one.

        S_t = exp(g_t) S_{t-1} + x_t

    Shapes   x (B,T,D)   log_decay g (D,) or (B,T,D), default: 0   S (B,D), default: zeros
             ->  sums (B,T,D), S (B,D), in float32 or wider
    Cost     time O(T D), or O(T C D) with fixed speeds, in chunks of C; memory O(T D)
    Twin     running_sum_loop, equal to 1e-12 in float64
    """
    x = _widen(x)
    S = x.new_zeros(x.shape[0], x.shape[2]) if S is None else S.to(x.dtype)
    if log_decay is None:
        sums = x.cumsum(dim=1) + S[:, None]
        return sums, sums[:, -1].clone()  # a view would keep all of the sums alive
    with _disable_autocast(x.device):
        if log_decay.ndim == 3:
            sums = _recurrence(log_decay.to(x.dtype).exp(), x, S)
            return sums, sums[:, -1].clone()
        return _decaying_sum(x, log_decay, S, chunk)


# One operator, so that it has a shape of its own where there are no values: on the meta device and
# in torch.compile, which would unroll the loop. Autograd would store every step by itself.
@torch.library.custom_op("qllk::recurrence", mutates_args=())
def _recurrence(a: Tensor, x: Tensor, S: Tensor) -> Tensor:
    """S_t = a_t S_{t-1} + x_t, one step of all channels at a time.

    Shapes   a, x (B,T,D), S (B,D)  ->  sums (B,T,D)
    """
    sums, last = torch.empty_like(x), S
    for t in range(x.shape[1]):
        last = torch.addcmul(x[:, t], a[:, t], last, out=sums[:, t])
    return sums


@torch.library.custom_op("qllk::recurrence_backward", mutates_args=())
def _recurrence_backward(a: Tensor, gradient: Tensor) -> Tensor:
    """dx_t = dS_t + a_{t+1} dx_{t+1}, from the last step to the first.  Shapes   all (B,T,D)"""
    dx = gradient.clone()
    for t in range(dx.shape[1] - 1, 0, -1):
        dx[:, t - 1].addcmul_(a[:, t], dx[:, t])
    return dx


_recurrence.register_fake(lambda a, x, S: torch.empty_like(x))
_recurrence_backward.register_fake(lambda a, gradient: torch.empty_like(gradient))


def _keep_for_backward(ctx, inputs, output):
    a, _, S = inputs
    ctx.save_for_backward(a, S, output)


def _recurrence_gradients(ctx, gradient):
    """da_t = dx_t S_{t-1} and dS = a_1 dx_1."""
    a, S, sums = ctx.saved_tensors
    dx = _recurrence_backward(a, gradient)
    before = torch.cat((S[:, None], sums[:, :-1]), dim=1)
    return dx * before, dx, a[:, 0] * dx[:, 0]


_recurrence.register_autograd(_recurrence_gradients, setup_context=_keep_for_backward)


def _decaying_sum(x, log_decay, S, chunk):
    """Within a chunk, one triangular matrix of powers per channel; between chunks, one state."""
    log_decay = log_decay.to(x.dtype)
    steps = torch.arange(min(chunk, x.shape[1]), device=x.device)
    ages = (steps[:, None] - steps).to(log_decay.dtype)  # (C,C): how long before i step j was
    weight = (log_decay[:, None, None] * ages.clamp(min=0)).exp().tril()  # (D,C,C)
    fade = (log_decay * (steps[:, None] + 1)).exp()  # (C,D): the share of S left after each step
    pieces = []
    for piece in x.split(chunk, dim=1):
        C = piece.shape[1]
        sums = torch.einsum("dij,bjd->bid", weight[:, :C, :C], piece)
        sums = sums + fade[:C] * S[:, None]
        S = sums[:, -1]
        pieces.append(sums)
    return torch.cat(pieces, dim=1), S.clone()


def running_sum_loop(
    x: Tensor, log_decay: Tensor | None = None, S: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition of `running_sum`."""
    S = x.new_zeros(x.shape[0], x.shape[2]) if S is None else S
    sums = []
    for t in range(x.shape[1]):
        if log_decay is not None:
            S = (log_decay if log_decay.ndim == 1 else log_decay[:, t]).exp() * S
        S = S + x[:, t]
        sums.append(S)
    return torch.stack(sums, dim=1), S


def cumsum_kernel(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, S: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """QLLK's kernel: each query reads, channel by channel, the running sum of key-value products.

        S_t = exp(g) S_{t-1} + k_t v_t        y_t = q_t S_t        (all elementwise)

    This is linear attention with D heads of width one, and HGRN with a fixed decay. Nothing
    normalises S: without decay it grows as sqrt(t) on random input and as t on constant input.

    Shapes   q, k, v (B,T,D)   log_decay g (D,), default: 0   S (B,D), default: zeros
             ->  y (B,T,D), S (B,D), in float32 or wider
    State    D numbers, for any T
    Cost     time and memory O(T D)
    Paper    QLLK 1.0 (2025); Katharopoulos 2020, 2006.16236, with heads of width one
    Twin     cumsum_kernel_loop, equal to 1e-12 in float64
    """
    sums, S = running_sum(k * v, log_decay, S)
    return q * sums, S


def cumsum_kernel_loop(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, S: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition of `cumsum_kernel`."""
    sums, S = running_sum_loop(k * v, log_decay, S)
    return torch.stack([q[:, t] * sums[:, t] for t in range(q.shape[1])], dim=1), S


# ---------------------------------------------------------------- linear attention


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    S: Tensor | None = None,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """Each query reads a decaying sum of key-value products.

        S_t = exp(g_t) S_{t-1} + k_t^T v_t        o_t = q_t S_t

    Shapes   q, k (B,H,T,K)   v (B,H,T,V)   log_decay g (B,H,T,1 or K), default: 0
             S (B,H,K,V), default: zeros   ->   o (B,H,T,V), S (B,H,K,V), in float32 or wider
    State    H K V numbers, for any T
    Cost     time O(T (C K + K V)); memory O(C^2) per chunk of C, O(C^2 K) with a decay per channel
    Paper    Katharopoulos 2020, 2006.16236; RetNet, 2307.08621; GLA, 2312.06635
    Twin     linear_attention_loop, equal to 1e-12 in float64
    """
    q, k, v, log_decay, S = _fill_in(q, k, v, log_decay, S)
    outputs = []
    with _disable_autocast(q.device):
        for q_, k_, v_, g_ in _chunks((q, k, v, log_decay), chunk):
            total = g_.cumsum(dim=2)  # (B,H,C,1|K): log decay since the chunk began
            scores = _decayed_scores(q_, k_, total)
            outputs.append(scores @ v_ + (q_ * total.exp()) @ S)
            S = _fade_and_add(S, k_, v_, total)
    return torch.cat(outputs, dim=2), S


def _fill_in(q, k, v, log_decay, S):
    """Zeros for a missing decay or state, and all tensors in float32 or in q's wider dtype."""
    S = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]) if S is None else S
    log_decay = q.new_zeros(*q.shape[:3], 1) if log_decay is None else log_decay
    q = _widen(q)
    return q, *(x.to(q.dtype) for x in (k, v, log_decay, S))


def _chunks(tensors: Sequence[Tensor], size: int) -> Iterator[tuple[Tensor, ...]]:
    """The next `size` steps of every tensor, until the sequences end."""
    return zip(*(x.split(size, dim=2) for x in tensors), strict=True)


def _decayed_scores(q, k, total):
    """sum_K q_i k_j exp(total_i - total_j) for j <= i, else 0: (B,H,C,C).

    `total` (B,H,C,1 or K) is the log decay summed since the chunk began.
    """
    gaps = total[:, :, :, None] - total[:, :, None]  # (B,H,C,C,1|K)
    future = ~causal_mask(q.shape[2], q.shape[2], device=q.device)
    weight = gaps.masked_fill(future[..., None], float("-inf")).exp()
    if weight.shape[-1] == 1:
        return (q @ k.transpose(2, 3)) * weight[..., 0]
    return torch.einsum("bhik,bhjk,bhijk->bhij", q, k, weight)


def _fade_and_add(S, k, v, total):
    """The state after a chunk, (B,H,K,V), with `total` as in `_decayed_scores`."""
    last = total[:, :, -1:]
    return last.exp().transpose(2, 3) * S + (k * (last - total).exp()).transpose(2, 3) @ v


def linear_attention_loop(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, S: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition of `linear_attention`."""
    S = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]) if S is None else S
    outputs = []
    for t in range(q.shape[2]):
        if log_decay is not None:
            S = log_decay[:, :, t].exp()[..., None] * S
        S = S + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append((q[:, :, t, None, :] @ S).squeeze(-2))
    return torch.stack(outputs, dim=2), S


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    S: Tensor | None = None,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """Linear attention that corrects itself: it adds the difference between v and what k reads.

        S'_t = exp(g_t) S_{t-1}      S_t = S'_t + k_t^T beta_t (v_t - k_t S'_t)      o_t = q_t S_t

    Within a chunk each correction u depends on the earlier ones: a triangular system, solved at
    once. Keys should have unit norm, so that beta = 1 replaces the old value and 0 leaves it.

    Shapes   q, k (B,H,T,K)   v (B,H,T,V)   beta (B,H,T,1)   log_decay g (B,H,T,1 or K), default: 0
             S (B,H,K,V), default: zeros   ->   o (B,H,T,V), S (B,H,K,V), in float32 or wider
    State    H K V numbers, for any T
    Cost     time O(T (C K + C V + K V)); memory as linear_attention
    Paper    DeltaNet, Yang 2024, 2406.06484; gated, Yang 2024, 2412.06464, equation 10; with a
             decay per channel, Kimi Linear 2025, 2510.26692
    Twin     delta_rule_loop, equal to 1e-12 in float64
    """
    q, k, v, log_decay, S = _fill_in(q, k, v, log_decay, S)
    outputs = []
    with _disable_autocast(q.device):
        for q_, k_, v_, beta_, g_ in _chunks((q, k, v, beta.to(q.dtype), log_decay), chunk):
            total = g_.cumsum(dim=2)  # (B,H,C,1|K): log decay since the chunk began
            known = (k_ * total.exp()) @ S  # what k reads, before this chunk's corrections
            links = beta_ * _decayed_scores(k_, k_, total)  # the solver takes its diagonal as ones
            u = torch.linalg.solve_triangular(
                links, beta_ * (v_ - known), upper=False, unitriangular=True
            )
            outputs.append(_decayed_scores(q_, k_, total) @ u + (q_ * total.exp()) @ S)
            S = _fade_and_add(S, k_, u, total)
    return torch.cat(outputs, dim=2), S


def delta_rule_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    S: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition of `delta_rule`."""
    S = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]) if S is None else S
    outputs = []
    for t in range(q.shape[2]):
        if log_decay is not None:
            S = log_decay[:, :, t].exp()[..., None] * S
        known = (k[:, :, t, None, :] @ S).squeeze(-2)
        S = S + k[:, :, t, :, None] * (beta[:, :, t] * (v[:, :, t] - known))[:, :, None, :]
        outputs.append((q[:, :, t, None, :] @ S).squeeze(-2))
    return torch.stack(outputs, dim=2), S


# ---------------------------------------------------------------- softmax attention


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """The weight of each key for each query, each row adding up to 1: the T x N table itself.

        A = softmax(q k^T / sqrt(K)), with -inf where `mask` is False

    Shapes   q (B,H,T,K)   k (B,H,N,K)   mask (T,N) or (B,1,T,N) bool, default: attend to all
             ->  A (B,H,T,N)
    Cost     time O(T N K), memory O(T N)
    """
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average the values, weighted by how well each key matches the query.

        o = A v,    A = attention_weights(q, k, mask)

    Shapes   q (B,H,T,K)   k (B,H,N,K)   v (B,H,N,V)   mask as in attention_weights
             ->  o (B,H,T,V)
    Cost     time O(T N (K + V)), memory O(T N)
    Paper    Vaswani 2017, 1706.03762, equation 1
    Twin     softmax_attention_loop, equal to 1e-12 in float64
    """
    return attention_weights(q, k, mask) @ v


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask = Mask(), bias: Tensor | None = None
) -> Tensor:
    """Softmax attention under a `Mask`, through torch's fused kernel, which stores no table.

    Shapes   q (B,H,T,K), the queries at the last T positions   k (B,H,N,K)   v (B,H,N,V)
             bias (H,T,N), default: 0   ->   o (B,H,T,V)
    Cost     time O(T N (K + V)); memory O(T) for T = N without mask options or a bias, else O(T N)
    Paper    FlashAttention, Dao 2022, 2205.14135
    Twin     softmax_attention_loop with mask.table(T, N), equal to 1e-12 in float64
    """
    T, N = q.shape[2], k.shape[2]
    if T == N and mask.causal and mask.plain and bias is None:  # torch then skips the future
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return fused_attention(q, k, v, mask.table(T, N, q.device), bias)


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Softmax attention to all keys, or to those of a mask, through torch's fused kernel.

        A = softmax(q k^T / sqrt(K) + bias), with -inf where `mask` is False        o = A v

    Shapes   q (B,H,T,K)   k (B,H,N,K)   v (B,H,N,V)   mask as in attention_weights
             bias (H,T,N), default: 0   ->   o (B,H,T,V)
    Cost     time O(T N (K + V)), memory O(T + N), or O(T N) with a bias
    Twin     softmax_attention_loop, equal to 1e-12 in float64
    """
    if bias is not None:
        mask = bias.to(q.dtype) if mask is None else bias.to(q.dtype).where(mask, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def softmax_attention_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The definition of softmax attention, with or without a bias: one query at a time."""
    outputs = []
    for t in range(q.shape[2]):
        scores = (q[:, :, t, None] * k).sum(-1) * q.shape[-1] ** -0.5  # (B,H,N)
        weight = (scores if bias is None else scores + bias[:, t]).exp()
        weight = weight if mask is None else weight * mask[..., t, :]
        weight = weight / weight.sum(-1, keepdim=True)
        outputs.append((weight[..., None] * v).sum(2))
    return torch.stack(outputs, dim=2)


def tiled_attention(q: Tensor, k: Tensor, v: Tensor, tile: int = 64) -> Tensor:
    """Causal attention as fused kernels compute it: tile by tile, without storing the table.

        with each tile's scores s:    m' = max(m, s)      l = e^(m-m') l + sum e^(s-m')
                                      o = e^(m-m') o + e^(s-m') v      and in the end  o / l

    Earlier sums are rescaled when a larger score arrives (online softmax). The backward pass keeps
    m + log l of each query and recomputes the weights of every tile from it.
    It is written to be read: in Python the loop is slow. Use `causal_attention` instead.

    Shapes   q (B,H,T,K), the queries at the last T positions   k (B,H,N,K)   v (B,H,N,V)
             tile, the side of a tile of scores   ->  o (B,H,T,V), in v's dtype
    Cost     time O(T N (K + V)); memory O(T + N), and tile^2 for one tile
    Paper    Milakov 2018, 1805.02867, algorithm 3; FlashAttention-2, Dao 2023, 2307.08691
    Twin     softmax_attention_loop with causal_mask(T, N), equal to 1e-12 in float64
    """
    wide = _widen(q)
    return _Tiled.apply(wide, k.to(wide.dtype), v.to(wide.dtype), tile).to(v.dtype)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, tile):
        outputs, logsums = [], []
        with _disable_autocast(q.device):
            for rows, columns in _tiles(q.shape[2], k.shape[2], tile):
                m = q.new_full((*q[:, :, rows].shape[:3], 1), float("-inf"))
                total = o = torch.zeros_like(m)
                for cols in columns:
                    scores = _tile_scores(q, k, rows, cols)
                    larger = m.maximum(scores.amax(dim=-1, keepdim=True))
                    fade, weight = (m - larger).exp(), (scores - larger).exp()
                    total = fade * total + weight.sum(dim=-1, keepdim=True)
                    o = fade * o + weight @ v[:, :, cols]
                    m = larger
                outputs.append(o / total)
                logsums.append(m + total.log())
        o = torch.cat(outputs, dim=2)
        ctx.save_for_backward(q, k, v, o, torch.cat(logsums, dim=2))
        ctx.tile = tile
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx, do):
        q, k, v, o, logsum = ctx.saved_tensors
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        shared = (do * o).sum(dim=-1, keepdim=True)  # each row of weights adds up to 1
        for rows, columns in _tiles(q.shape[2], k.shape[2], ctx.tile):
            do_ = do[:, :, rows]
            for cols in columns:
                weight = (_tile_scores(q, k, rows, cols) - logsum[:, :, rows]).exp()
                dv[:, :, cols] += weight.transpose(2, 3) @ do_
                dweight = do_ @ v[:, :, cols].transpose(2, 3)
                ds = weight * (dweight - shared[:, :, rows]) * q.shape[-1] ** -0.5
                dq[:, :, rows] += ds @ k[:, :, cols]
                dk[:, :, cols] += ds.transpose(2, 3) @ q[:, :, rows]
        return dq, dk, dv, None


def _tiles(T, N, tile):
    """Tiles of queries, each with the tiles of keys that at least one of them may attend to."""
    for row in range(0, T, tile):
        stop = min(row + tile, T)
        end = N - T + stop
        yield slice(row, stop), [slice(c, min(c + tile, end)) for c in range(0, end, tile)]


def _tile_scores(q, k, rows, cols):
    """A tile of q k^T / sqrt(K), with -inf where the key comes after the query."""
    scores = q[:, :, rows] @ k[:, :, cols].transpose(2, 3) * q.shape[-1] ** -0.5
    positions = torch.arange(rows.start, rows.stop, device=q.device) + k.shape[2] - q.shape[2]
    future = torch.arange(cols.start, cols.stop, device=q.device) > positions[:, None]
    return scores.masked_fill(future, float("-inf"))


def latent_attention(
    q: Tensor, c: Tensor, r: Tensor, to_k: Tensor, to_v: Tensor, mask: Mask = Mask()
) -> Tensor:
    """Attention whose keys and values are computed from a latent, plus a key that all heads share.

        k_h = [to_k_h c, r]      v_h = to_v_h c      o_h = softmax(q_h k_h^T / sqrt(K + U)) v_h

    This is the naive form, for many queries: every head rebuilds its keys and values.

    Shapes   q (B,H,T,K+U), the queries at the last T positions   latent c (B,N,L)
             shared key r (B,N,U)   to_k (H,K,L)   to_v (H,V,L)   ->   o (B,H,T,V)
    Cost     time O(H N (L (K + V) + T (K + U + V))), memory O(H N (K + U + V))
    Paper    DeepSeek-V2, 2405.04434, equations 9 to 19
    Twin     latent_attention_loop, equal to 1e-12 in float64
    """
    return causal_attention(q, latent_keys(c, r, to_k), c[:, None] @ to_v.transpose(1, 2), mask)


def latent_keys(c: Tensor, r: Tensor, to_k: Tensor) -> Tensor:
    """The keys of `latent_attention`, head by head.  Shapes   as there  ->  (B,H,N,K+U)"""
    k = c[:, None] @ to_k.transpose(1, 2)
    return torch.cat((k, r[:, None].expand(-1, k.shape[1], -1, -1)), dim=-1)


def absorbed_attention(
    q: Tensor, c: Tensor, r: Tensor, to_k: Tensor, to_v: Tensor, mask: Mask = Mask()
) -> Tensor:
    """`latent_attention` that builds no keys or values: it projects queries and outputs instead.

        o_h = to_v_h ( softmax([q_h to_k_h, q_r] [c, r]^T / sqrt(K + U)) c )

    All heads then share their keys, as if they were further queries of one head. This form is for
    few queries and a long cache, which is read once for all heads.

    Shapes   as latent_attention
    Cost     time O(H T (L (K + V) + N (L + U))), memory O(H T N)
    Paper    DeepSeek-V2, 2405.04434, 2.1.2
    Twin     latent_attention_loop, equal to 1e-12 in float64
    """
    H, T, width = q.shape[1:]
    plain, rotated = q.split((to_k.shape[1], r.shape[-1]), dim=-1)
    q = torch.cat((plain @ to_k, rotated), dim=-1)  # (B,H,T,L+U)
    q = q * (q.shape[-1] / width) ** 0.5  # scores are still divided by the root of K + U
    table = mask.table(T, c.shape[1], q.device)
    table = None if table is None else table.tile(H, 1)  # once for the queries of each head
    k = torch.cat((c, r), dim=-1)
    o = softmax_attention(q.flatten(1, 2)[:, None], k[:, None], c[:, None], table)
    return o[:, 0].unflatten(1, (H, T)) @ to_v.transpose(1, 2)


def latent_attention_loop(
    q: Tensor, c: Tensor, r: Tensor, to_k: Tensor, to_v: Tensor, mask: Mask = Mask()
) -> Tensor:
    """The definition of `latent_attention` and `absorbed_attention`: one head at a time."""
    table = mask.table(q.shape[2], c.shape[1], q.device)
    heads = []
    for h in range(q.shape[1]):
        k = torch.cat((c @ to_k[h].T, r), dim=-1)[:, None]  # (B,1,N,K+U)
        v = (c @ to_v[h].T)[:, None]
        heads.append(softmax_attention_loop(q[:, h : h + 1], k, v, table))
    return torch.cat(heads, dim=1)


# ---------------------------------------------------------------- local mixing


def causal_conv(x: Tensor, weight: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mix each channel with its own last W values: a causal depthwise convolution.

        y_t = sum_j  w_j x_{t-j},    j = 0 … W-1

    Shapes   x (B,T,D)   weight w (W,D)   past (B,W-1,D): the inputs before x, default: zeros
             ->  y (B,T,D), past (B,W-1,D)
    State    (W-1) D numbers, for any T
    Cost     time O(T W D), memory O(T D)
    Twin     causal_conv_loop, equal to 1e-12 in float64
    """
    W, D = weight.shape
    past = x.new_zeros(x.shape[0], W - 1, D) if past is None else past
    x = torch.cat((past.to(x.dtype), x), dim=1)
    # As an image of height 1 in channels-last order, the order in which (B,T,D) lies in memory:
    # twice as fast on CPU as conv1d, which copies.
    image = x.transpose(1, 2)[:, :, None]  # (B,D,1,W-1+T)
    taps = weight.flip(0).t()[:, None, None]  # (D,1,1,W)
    y = F.conv2d(image, taps, groups=D)
    return y[:, :, 0].transpose(1, 2), x[:, x.shape[1] - (W - 1) :].clone()


def causal_conv_loop(
    x: Tensor, weight: Tensor, past: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition of `causal_conv`."""
    W, D = weight.shape
    past = x.new_zeros(x.shape[0], W - 1, D) if past is None else past
    outputs = []
    for t in range(x.shape[1]):
        recent = torch.cat((past, x[:, t : t + 1]), dim=1)  # (B,W,D), oldest first
        outputs.append((recent.flip(1) * weight).sum(1))
        past = recent[:, 1:]
    return torch.stack(outputs, dim=1), past
