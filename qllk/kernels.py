"""Sequence rules as pure functions, each beside the slow loop that defines it: the heart.

Axes     B batch, T time, D model width, H heads, K key width, V value width, W window, C chunk,
         S state.
State    what came before, as a value. None means that nothing did. A new one is returned; the
         one passed in stays valid.
Twins    `name_loop` is the definition, one step at a time: slow, obvious, trusted. The tests hold
         each fast form equal to it on outputs, final state and every gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# ---------------------------------------------------------------- the cumulative sum


def running_sum(x: Tensor, S: Tensor | None = None, log_decay: Tensor | None = None, chunk=64):
    """Add up a sequence, forgetting at fixed speeds.

        S_t = exp(g) S_{t-1} + x_t

    Shapes   x (B,T,D)   S (B,D), none means zeros   log_decay g (D,), none means 0
             ->  sums (B,T,D), S (B,D), in float32 at least: a half-precision sum soon stops growing
    Cost     time O(T D), or O(T C D) with decay, in chunks of C; memory O(T D)
    Twin     running_sum_loop, equal to 1e-12 in float64
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    S = x.new_zeros(x.shape[0], x.shape[2]) if S is None else S
    if log_decay is None:
        sums = x.cumsum(dim=1) + S[:, None]
        return sums, sums[:, -1].clone()  # a view would keep all of the sums alive
    with torch.autocast(x.device.type, enabled=False):
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
             S (B,H,K,V), none means zeros   ->   o (B,H,T,V), S (B,H,K,V)
    State    H K V numbers, whatever T
    Cost     time O(T (C K + K V)); memory O(C^2) per chunk of C, O(C^2 K) with a decay per channel
    Paper    Katharopoulos 2020, 2006.16236; RetNet, 2307.08621; GLA, 2312.06635
    Twin     linear_attention_loop, equal to 1e-12 in float64
    """
    if S is None:  # in float32 at least: a half-precision sum soon stops growing
        wide = torch.promote_types(q.dtype, torch.float32)
        S = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1], dtype=wide)
    if log_decay is None:
        log_decay = q.new_zeros(*q.shape[:3], 1)
    outputs = []
    for q_, k_, v_, g_ in zip(*(x.split(chunk, dim=2) for x in (q, k, v, log_decay)), strict=True):
        total = g_.cumsum(dim=2)  # (B,H,C,1|K): log decay since the chunk began
        scores = _decayed_scores(q_, k_, total)
        outputs.append(scores @ v_ + (q_ * total.exp()) @ S.to(q_.dtype))
        last = total[:, :, -1:]
        S = last.exp().transpose(2, 3) * S + (k_ * (last - total).exp()).transpose(2, 3) @ v_
    return torch.cat(outputs, dim=2), S


def _decayed_scores(q, k, total):
    """sum_K q_i k_j exp(total_i - total_j) for j <= i, else 0: (B,H,C,C)."""
    gaps = total[:, :, :, None] - total[:, :, None]  # (B,H,C,C,1|K)
    future = ~band(q.shape[2], q.shape[2], device=q.device)
    weight = gaps.masked_fill(future[..., None], float("-inf")).exp()
    if weight.shape[-1] == 1:
        return (q @ k.transpose(2, 3)) * weight[..., 0]
    return torch.einsum("bhik,bhjk,bhijk->bhij", q, k, weight)


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


# ---------------------------------------------------------------- softmax attention


def band(T: int, N: int, window: int | None = None, device=None) -> Tensor:
    """Which of N keys each of T queries may see; the queries are the *last* T of the N places.

    Shapes   -> (T,N) bool. Query i stands at place N - T + i and sees that place and those
             before it, at most `window` of them. So training, prefill and one cached step need
             no case of their own.
    """
    rows = torch.arange(N - T, N, device=device)[:, None]
    cols = torch.arange(N, device=device)
    keep = cols <= rows
    return keep if window is None else keep & (cols > rows - window)


def softmax_attention(q, k, v, keep=None):
    """Average the values, weighted by how well each key matches the query: the N x N table.

        A = softmax(q k^T / sqrt(K)), with -inf where `keep` is False        o = A v

    Shapes   q (B,H,T,K)   k (B,H,N,K)   v (B,H,N,V)   keep (T,N) bool, none means see all
             ->  o (B,H,T,V)
    Cost     time O(T N (K + V)), memory O(T N)
    Paper    Vaswani 2017, 1706.03762, equation 1
    Twin     softmax_attention_loop, equal to 1e-12 in float64
    """
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    return scores.softmax(dim=-1) @ v


def causal_attention(q, k, v, window=None):
    """Softmax attention over the past, through torch's fused kernel, which stores no table.

    Shapes   q (B,H,T,K)   k (B,H,N,K)   v (B,H,N,V), the queries standing at the last T places
             ->  o (B,H,T,V)
    Cost     time O(T N (K + V)), memory O(T + N)
    Paper    FlashAttention, Dao 2022, 2205.14135
    Twin     softmax_attention_loop with keep = band(T, N, window), equal to 1e-12 in float64
    """
    T, N = q.shape[2], k.shape[2]
    if T == N and window is None:  # torch is fastest when it may skip the future by itself
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    keep = band(T, N, window, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep)


def fused_attention(q, k, v, keep=None, bias=None):
    """Softmax attention to all keys or to those of an explicit mask, through torch's fused kernel.

        A = softmax(q k^T / sqrt(K) + bias), with -inf where `keep` is False        o = A v

    Shapes   q (B,H,T,K)   k (B,H,N,K)   v (B,H,N,V)   keep (T,N) bool, none means see all
             bias (H,T,N), none means 0   ->   o (B,H,T,V)
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
        seen = slice(None) if keep is None else keep[t]
        k_, v_ = k[:, :, seen], v[:, :, seen]
        scores = (q[:, :, t, None] * k_).sum(-1) * q.shape[-1] ** -0.5  # (B,H,seen)
        weight = (scores if bias is None else scores + bias[:, t, seen]).exp()
        weight = weight / weight.sum(-1, keepdim=True)
        outputs.append((weight[..., None] * v_).sum(2))
    return torch.stack(outputs, dim=2)


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
