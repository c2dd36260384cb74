"""Sequence rules as pure functions, each beside the slow loop that defines it: the heart.

Axes     B batch, T time, D model width, H heads, K key width, V value width, W window, C chunk,
         S state; N keys, L latent width, U width of the key that all heads share.
State    what came before, as a value. None means that nothing did. A new one is returned; the
         one passed in stays valid.
Twins    `name_loop` is the definition, one step at a time: slow, obvious, trusted. The tests hold
         each fast form equal to it on outputs, final state and every gradient.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def disable_autocast(device):
    """Work at the inputs' own precision, whatever the caller's autocast says.

    The meta device, on which models are counted, computes nothing and has no autocast.
    """
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _wide(*tensors) -> list[Tensor]:
    """All of them in float32 at least, or in what the first has if that is wider."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return [x.to(dtype) for x in tensors]


# ---------------------------------------------------------------- the cumulative sum


def running_sum(x: Tensor, S: Tensor | None = None, log_decay: Tensor | None = None, chunk=64):
    """Add up a sequence, forgetting at fixed speeds.

        S_t = exp(g) S_{t-1} + x_t

    Shapes   x (B,T,D)   S (B,D), none means zeros   log_decay g (D,), none means 0
             ->  sums (B,T,D), S (B,D), in float32 at least: a half-precision sum soon stops growing
    Cost     time O(T D), or O(T C D) with decay, in chunks of C; memory O(T D)
    Twin     running_sum_loop, equal to 1e-12 in float64
    """
    (x,) = _wide(x)
    S = x.new_zeros(x.shape[0], x.shape[2]) if S is None else S
    if log_decay is None:
        sums = x.cumsum(dim=1) + S[:, None]
        return sums, sums[:, -1].clone()  # a view would keep all of the sums alive
    with disable_autocast(x.device):
        return _decaying_sum(x, S, log_decay, chunk)


def _decaying_sum(x, S, log_decay, chunk):
    """Within a chunk, one triangular matrix of powers per channel; between chunks, one state."""
    log_decay = log_decay.to(x.dtype)
    steps = torch.arange(min(chunk, x.shape[1]), device=x.device)
    ages = (steps[:, None] - steps).to(log_decay.dtype)  # (C,C): how long ago j was, seen from i
    weight = (log_decay[:, None, None] * ages.clamp(min=0)).exp().tril()  # (D,C,C)
    fade = (log_decay * (steps[:, None] + 1)).exp()  # (C,D): what is left of S after each step
    pieces = []
    for piece in x.split(chunk, dim=1):
        C = piece.shape[1]
        sums = torch.einsum("dij,bjd->bid", weight[:, :C, :C], piece)
        sums = sums + fade[:C] * S[:, None]
        S = sums[:, -1]
        pieces.append(sums)
    return torch.cat(pieces, dim=1), S.clone()


def running_sum_loop(x, S=None, log_decay=None):
    """The definition of `running_sum`."""
    S = x.new_zeros(x.shape[0], x.shape[2]) if S is None else S
    sums = []
    for t in range(x.shape[1]):
        S = (S if log_decay is None else log_decay.exp() * S) + x[:, t]
        sums.append(S)
    return torch.stack(sums, dim=1), S


def cumsum_kernel(q, k, v, S=None, log_decay=None):
    """QLLK's kernel: read each query, channel by channel, from the sum of key-value products.

        S_t = exp(g) S_{t-1} + k_t v_t        y_t = q_t S_t        (all elementwise)

    It is linear attention with D heads of width one, and HGRN with a fixed decay. Nothing
    normalises S: without decay it grows as sqrt(t) on random input and as t on constant input.

    Shapes   q, k, v (B,T,D)   S (B,D)   log_decay g (D,), none means 0  ->  y (B,T,D), S (B,D)
    State    D numbers, whatever T
    Cost     time and memory O(T D)
    Paper    QLLK 1.0 (2025); Katharopoulos 2020, 2006.16236, with heads of width one
    Twin     cumsum_kernel_loop, equal to 1e-12 in float64
    """
    sums, S = running_sum(k * v, S, log_decay)
    return q * sums, S


def cumsum_kernel_loop(q, k, v, S=None, log_decay=None):
    """The definition of `cumsum_kernel`."""
    sums, S = running_sum_loop(k * v, S, log_decay)
    return torch.stack([q[:, t] * sums[:, t] for t in range(q.shape[1])], dim=1), S


# ---------------------------------------------------------------- linear attention


def linear_attention(q, k, v, log_decay=None, S=None, chunk=32):
    """Read each query from a decaying sum of key-value products.

        S_t = exp(g_t) S_{t-1} + k_t^T v_t        o_t = q_t S_t

    Shapes   q, k (B,H,T,K)   v (B,H,T,V)   log_decay g (B,H,T,1 or K), none means 0
             S (B,H,K,V), none means zeros   ->   o (B,H,T,V), S (B,H,K,V), in float32 at least:
             a half-precision sum soon stops growing
    State    H K V numbers, whatever T
    Cost     time O(T (C K + K V)); memory O(C^2) per chunk of C, O(C^2 K) with a decay per channel
    Paper    Katharopoulos 2020, 2006.16236; RetNet, 2307.08621; GLA, 2312.06635
    Twin     linear_attention_loop, equal to 1e-12 in float64
    """
    q, k, v, log_decay, S = _widened(q, k, v, log_decay, S)
    outputs = []
    with disable_autocast(q.device):
        for q_, k_, v_, g_ in _chunks(chunk, q, k, v, log_decay):
            total = g_.cumsum(dim=2)  # (B,H,C,1|K): log decay since the chunk began
            scores = _decayed_scores(q_, k_, total)
            outputs.append(scores @ v_ + (q_ * total.exp()) @ S)
            S = _fade_and_add(S, k_, v_, total)
    return torch.cat(outputs, dim=2), S


def _widened(q, k, v, log_decay, S, *others):
    """All of them in float32 at least, with zeros for a state or a decay that is none."""
    S = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]) if S is None else S
    log_decay = q.new_zeros(*q.shape[:3], 1) if log_decay is None else log_decay
    return _wide(q, k, v, log_decay, S, *others)


def _chunks(size, *tensors):
    """So many steps of each at a time."""
    return zip(*(x.split(size, dim=2) for x in tensors), strict=True)


def _decayed_scores(q, k, total):
    """sum_K q_i k_j exp(total_i - total_j) for j <= i, else 0: (B,H,C,C)."""
    gaps = total[:, :, :, None] - total[:, :, None]  # (B,H,C,C,1|K)
    future = ~causal_mask(q.shape[2], q.shape[2], device=q.device)
    weight = gaps.masked_fill(future[..., None], float("-inf")).exp()
    if weight.shape[-1] == 1:
        return (q @ k.transpose(2, 3)) * weight[..., 0]
    return torch.einsum("bhik,bhjk,bhijk->bhij", q, k, weight)


def _fade_and_add(S, k, v, total):
    """The state after a chunk: (B,H,K,V)."""
    last = total[:, :, -1:]
    return last.exp().transpose(2, 3) * S + (k * (last - total).exp()).transpose(2, 3) @ v


def linear_attention_loop(q, k, v, log_decay=None, S=None):
    """The definition of `linear_attention`."""
    S = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]) if S is None else S
    outputs = []
    for t in range(q.shape[2]):
        if log_decay is not None:
            S = log_decay[:, :, t].exp()[..., None] * S
        S = S + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append((q[:, :, t, None, :] @ S).squeeze(-2))
    return torch.stack(outputs, dim=2), S


def delta_rule(q, k, v, beta, log_decay=None, S=None, chunk=32):
    """Linear attention that corrects itself: write the part of v that reading k does not give yet.

        S'_t = exp(g_t) S_{t-1}      S_t = S'_t + k_t^T beta_t (v_t - k_t S'_t)      o_t = q_t S_t

    Within a chunk the corrections u depend on each other, each on those before: a triangular
    system, solved at once. Keys should have length 1, so that beta = 1 replaces and 0 keeps.

    Shapes   q, k (B,H,T,K)   v (B,H,T,V)   beta (B,H,T,1)   log_decay g (B,H,T,1 or K), none
             means 0   S (B,H,K,V), none means zeros   ->   o (B,H,T,V), S (B,H,K,V), in float32
             at least, as linear_attention
    State    H K V numbers, whatever T
    Cost     time O(T (C K + C V + K V)); memory as linear_attention
    Paper    DeltaNet, Yang 2024, 2406.06484; gated, Yang 2024, 2412.06464, equation 10; with a
             decay per channel, Kimi Linear 2025, 2510.26692
    Twin     delta_rule_loop, equal to 1e-12 in float64
    """
    q, k, v, log_decay, S, beta = _widened(q, k, v, log_decay, S, beta)
    outputs = []
    with disable_autocast(q.device):
        for q_, k_, v_, beta_, g_ in _chunks(chunk, q, k, v, beta, log_decay):
            total = g_.cumsum(dim=2)  # (B,H,C,1|K): log decay since the chunk began
            known = (k_ * total.exp()) @ S  # what reading k gives, before this chunk's corrections
            links = beta_ * _decayed_scores(k_, k_, total)  # the solver takes its diagonal as ones
            u = torch.linalg.solve_triangular(
                links, beta_ * (v_ - known), upper=False, unitriangular=True
            )
            outputs.append(_decayed_scores(q_, k_, total) @ u + (q_ * total.exp()) @ S)
            S = _fade_and_add(S, k_, u, total)
    return torch.cat(outputs, dim=2), S


def delta_rule_loop(q, k, v, beta, log_decay=None, S=None):
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


def causal_mask(
    T: int, N: int, window: int | None = None, sinks=0, device=None, keep=None
) -> Tensor:
    """Which of N keys each of T queries may see; the queries are the *last* T of the N places.

    Shapes   keep (T,N) or (B,1,T,N) bool: what else must hold, none means nothing
             ->  as keep, (T,N) without one. Query i stands at place N - T + i and sees that place
             and those before it, at most `window` of them, and the first `sinks` places beside.
             So training, prefill and one cached step need no case of their own.
    Paper    sinks: StreamingLLM, Xiao 2023, 2309.17453
    """
    rows = torch.arange(N - T, N, device=device)[:, None]
    cols = torch.arange(N, device=device)
    past = cols <= rows if keep is None else keep & (cols <= rows)
    return past if window is None else past & ((cols > rows - window) | (cols < sinks))


def document_mask(documents) -> Tensor:
    """Which keys each query may see when documents share a row: those of its own document.

    Block-diagonal; a causal model sees `same_document(d) & band(T, T)`. Padding sees padding, so
    that no query is left without a key.

    Shapes   documents (B,T) of any type  ->  keep (B,1,T,T) bool, one for all heads
    """
    return (documents[:, :, None] == documents[:, None, :])[:, None]


def attention_weights(q, k, keep=None):
    """How much each query takes of each key, row by row a share of 1: the N x N table itself.

        A = softmax(q k^T / sqrt(K)), with -inf where `keep` is False

    Shapes   q (B,H,T,K)   k (B,H,N,K)   keep (T,N) or (B,1,T,N) bool, none means see all
             ->  A (B,H,T,N)
    Cost     time O(T N K), memory O(T N)
    """
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    return scores.softmax(dim=-1)


def softmax_attention(q, k, v, keep=None):
    """Average the values, weighted by how well each key matches the query.

        o = A v,    A = attention_weights(q, k, keep)

    Shapes   q (B,H,T,K)   k (B,H,N,K)   v (B,H,N,V)   keep as in attention_weights
             ->  o (B,H,T,V)
    Cost     time O(T N (K + V)), memory O(T N)
    Paper    Vaswani 2017, 1706.03762, equation 1
    Twin     softmax_attention_loop, equal to 1e-12 in float64
    """
    return attention_weights(q, k, keep) @ v


def causal_attention(q, k, v, window=None, sinks=0, keep=None, bias=None):
    """Softmax attention over the past, through torch's fused kernel, which stores no table.

    Shapes   q (B,H,T,K)   k (B,H,N,K)   v (B,H,N,V), the queries standing at the last T places
             keep, bias as in fused_attention   ->   o (B,H,T,V)
    Cost     time O(T N (K + V)), memory O(T + N), or O(T N) with a mask, a window or a bias
    Paper    FlashAttention, Dao 2022, 2205.14135
    Twin     softmax_attention_loop with band(T, N, window, sinks) & keep, equal to 1e-12 in float64
    """
    T, N = q.shape[2], k.shape[2]
    if T == N and window is keep is bias is None:  # torch is fastest when it skips the future
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return fused_attention(q, k, v, causal_mask(T, N, window, sinks, q.device, keep), bias)


def fused_attention(q, k, v, keep=None, bias=None):
    """Softmax attention to all keys or to those of an explicit mask, through torch's fused kernel.

        A = softmax(q k^T / sqrt(K) + bias), with -inf where `keep` is False        o = A v

    Shapes   q (B,H,T,K)   k (B,H,N,K)   v (B,H,N,V)   keep (T,N) or (B,1,T,N) bool, none means
             see all; T may be 1 for all queries   bias (H,T,N), none means 0   ->   o (B,H,T,V)
    Cost     time O(T N (K + V)), memory O(T + N), or O(T N) with a bias
    Twin     softmax_attention_loop, equal to 1e-12 in float64
    """
    if bias is not None:
        keep = bias.to(q.dtype) if keep is None else bias.to(q.dtype).where(keep, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep)


def softmax_attention_loop(q, k, v, keep=None, bias=None):
    """The definition of `softmax_attention`: one query at a time, only over the keys it sees."""
    outputs = []
    for t in range(q.shape[2]):
        scores = (q[:, :, t, None] * k).sum(-1) * q.shape[-1] ** -0.5  # (B,H,N)
        weight = (scores if bias is None else scores + bias[:, t]).exp()
        weight = weight if keep is None else weight * keep[..., t, :]
        weight = weight / weight.sum(-1, keepdim=True)
        outputs.append((weight[..., None] * v).sum(2))
    return torch.stack(outputs, dim=2)


def tiled_attention(q, k, v, tile=64):
    """Causal attention as fused kernels compute it: tile by tile, never holding the table.

        with each tile's scores s:    m' = max(m, s)      l = e^(m-m') l + sum e^(s-m')
                                      o = e^(m-m') o + e^(s-m') v      and at last  o / l

    What was summed before is corrected whenever a larger score arrives (online softmax). The
    backward pass keeps m + log l of each query and makes every tile's weights from it again.
    It is here to be read: in Python the loop is slow. `causal_attention` is the one to use.

    Shapes   q (B,H,T,K)   k (B,H,N,K)   v (B,H,N,V), the queries standing at the last T places
             ->  o (B,H,T,V)
    Cost     time O(T N (K + V)); memory O(T + N), and one tile of tile^2
    Paper    Milakov 2018, 1805.02867, algorithm 3; FlashAttention-2, Dao 2023, 2307.08691
    Twin     softmax_attention_loop with keep = band(T, N), equal to 1e-12 in float64
    """
    return _Tiled.apply(*_wide(q, k, v), tile).to(v.dtype)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, tile):
        outputs, logsums = [], []
        with disable_autocast(q.device):
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
        shared = (do * o).sum(dim=-1, keepdim=True)  # a row sums to 1: what one gains, others lose
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
    """Tiles of queries, each with the tiles of keys that some of them may see."""
    for row in range(0, T, tile):
        stop = min(row + tile, T)
        seen = N - T + stop
        yield slice(row, stop), [slice(c, min(c + tile, seen)) for c in range(0, seen, tile)]


def _tile_scores(q, k, rows, cols):
    """A tile of q k^T / sqrt(K), with -inf where a key lies in a query's future."""
    scores = q[:, :, rows] @ k[:, :, cols].transpose(2, 3) * q.shape[-1] ** -0.5
    places = torch.arange(rows.start, rows.stop, device=q.device) + k.shape[2] - q.shape[2]
    future = torch.arange(cols.start, cols.stop, device=q.device) > places[:, None]
    return scores.masked_fill(future, float("-inf"))


def latent_attention(q, c, r, to_k, to_v, keep=None):
    """Causal attention whose keys and values are made from one latent, and a key that all share.

        k_h = [to_k_h c, r]      v_h = to_v_h c      o_h = softmax(q_h k_h^T / sqrt(K + U)) v_h

    This is the naive form: every head rebuilds its keys and values. It suits many queries.

    Shapes   q (B,H,T,K+U)   latent c (B,N,L)   shared key r (B,N,U)   to_k (H,K,L)   to_v (H,V,L),
             the queries standing at the last T places   keep as in fused_attention
             ->   o (B,H,T,V)
    Cost     time O(H N (L (K + V) + T (K + U + V))), memory O(H N (K + U + V))
    Paper    DeepSeek-V2, 2405.04434, equations 9 to 19
    Twin     latent_attention_loop, equal to 1e-12 in float64
    """
    k = latent_keys(c, r, to_k)
    return causal_attention(q, k, c[:, None] @ to_v.transpose(1, 2), keep=keep)


def latent_keys(c, r, to_k):
    """What queries of `latent_attention` look at.  Shapes   as there  ->  (B,H,N,K+U)"""
    k = c[:, None] @ to_k.transpose(1, 2)
    return torch.cat((k, r[:, None].expand(-1, k.shape[1], -1, -1)), dim=-1)


def absorbed_attention(q, c, r, to_k, to_v, keep=None):
    """`latent_attention` without rebuilding: queries move into the latent, averages move out.

        o_h = to_v_h ( softmax([q_h to_k_h, q_r] [c, r]^T / sqrt(K + U)) c )

    All heads then look at the same keys, so they are further queries of one head. It suits few
    queries and a long cache, which is read once for all heads and as it lies.

    Shapes   as latent_attention
    Cost     time O(H T (L (K + V) + N (L + U))), memory O(H T N)
    Paper    DeepSeek-V2, 2405.04434, 2.1.2
    Twin     latent_attention_loop, equal to 1e-12 in float64
    """
    H, T, width = q.shape[1:]
    plain, turned = q.split((to_k.shape[1], r.shape[-1]), dim=-1)
    q = torch.cat((plain @ to_k, turned), dim=-1)  # (B,H,T,L+U)
    q = q * (q.shape[-1] / width) ** 0.5  # scores stay those of the original width
    past = causal_mask(T, c.shape[1], device=q.device, keep=keep).tile(H, 1)  # anew for each head
    k = torch.cat((c, r), dim=-1)
    o = softmax_attention(q.flatten(1, 2)[:, None], k[:, None], c[:, None], past)
    return o[:, 0].unflatten(1, (H, T)) @ to_v.transpose(1, 2)


def latent_attention_loop(q, c, r, to_k, to_v, keep=None):
    """The definition of `latent_attention` and `absorbed_attention`: one head at a time."""
    past = causal_mask(q.shape[2], c.shape[1], device=q.device, keep=keep)
    heads = []
    for h in range(q.shape[1]):
        k = torch.cat((c @ to_k[h].T, r), dim=-1)[:, None]  # (B,1,N,K+U)
        v = (c @ to_v[h].T)[:, None]
        heads.append(softmax_attention_loop(q[:, h : h + 1], k, v, past))
    return torch.cat(heads, dim=1)


# ---------------------------------------------------------------- local mixing


def causal_conv(x, weight, past=None):
    """Mix each channel with its own last W values: a causal depthwise convolution.

        y_t = sum_j  w_j x_{t-j},    j = 0 … W-1

    Shapes   x (B,T,D)   weight w (W,D)   past (B,W-1,D): the inputs before x, none means zeros
             ->  y (B,T,D), past (B,W-1,D)
    State    (W-1) D numbers, whatever T
    Cost     time O(T W D), memory O(T D)
    Twin     causal_conv_loop, equal to 1e-12 in float64
    """
    W, D = weight.shape
    past = x.new_zeros(x.shape[0], W - 1, D) if past is None else past
    x = torch.cat((past.to(x.dtype), x), dim=1)
    # As a picture of height 1 in channels-last order, which is how (B,T,D) lies in memory anyway:
    # twice as fast on CPU as conv1d, which copies.
    image = x.transpose(1, 2)[:, :, None]  # (B,D,1,W-1+T)
    taps = weight.flip(0).t()[:, None, None]  # (D,1,1,W)
    y = F.conv2d(image, taps, groups=D)
    return y[:, :, 0].transpose(1, 2), x[:, x.shape[1] - (W - 1) :].clone()


def causal_conv_loop(x, weight, past=None):
    """The definition of `causal_conv`."""
    W, D = weight.shape
    past = x.new_zeros(x.shape[0], W - 1, D) if past is None else past
    outputs = []
    for t in range(x.shape[1]):
        recent = torch.cat((past, x[:, t : t + 1]), dim=1)  # (B,W,D), the newest last
        outputs.append((recent.flip(1) * weight).sum(1))
        past = recent[:, 1:]
    return torch.stack(outputs, dim=1), past
