"""The recurrences of RWKV-4 and RWKV-7, next to the loops that define them.

Axes, states and twins are as in `kernels`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import _chunks, _disable_autocast, _fill_in, _widen

# ---------------------------------------------------------------- RWKV-4


def wkv(
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor,
    logsum: Tensor | None = None,
    mean: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Average the values of each channel, by weights that fade with age; the newest has a bonus.

        o_t = sum_i w_i v_i / sum_i w_i      w_i = exp(k_i + (t-1-i) g) for i < t
                                             w_t = exp(k_t + u)

    This is softmax attention in each channel, whose scores do not depend on a query. Hence any
    stretch of a sequence can be summed up by two numbers, the logarithm of its weights' sum and its
    average, and two neighbours can be joined to one: a parallel scan. Weights are only ever
    compared, so that nothing overflows, however large k is.

    Shapes   k, v (B,T,D)   log_decay g, bonus u (D,)   logsum, mean (B,D), default: nothing came
             before   ->   o (B,T,D), logsum, mean (B,D), in float32 or wider
    State    2 D numbers, for any T: the log of the sum of exp(k_i + (t-i) g), and the average
             under these weights
    Cost     time and memory O(T D), in 2 log2(T) rounds
    Paper    RWKV, Peng 2023, 2305.13048, the WKV operator; Blelloch 1990, Prefix sums and their
             applications, for the scan
    Twin     wkv_loop, equal to 1e-12 in float64
    """
    k, v, log_decay, bonus, logsum, mean = _start(k, v, log_decay, bonus, logsum, mean)
    with _disable_autocast(k.device):
        logsum, mean = _scan(
            torch.cat((logsum[:, None], k), dim=1), torch.cat((mean[:, None], v), dim=1), log_decay
        )
        before, old = logsum[:, :-1], mean[:, :-1]
        o = old + (k + bonus - before).sigmoid() * (v - old)
    return o, logsum[:, -1].clone(), mean[:, -1].clone()


def _start(k, v, log_decay, bonus, logsum, mean):
    """A weight of zero for a missing state, and all tensors in float32 or in k's wider dtype."""
    k = _widen(k)
    logsum = k.new_full(k[:, 0].shape, float("-inf")) if logsum is None else logsum
    mean = torch.zeros_like(k[:, 0]) if mean is None else mean
    return k, *(x.to(k.dtype) for x in (v, log_decay, bonus, logsum, mean))


def _scan(logsum, mean, fade):
    """Join each of N neighbouring stretches with all before it.  Shapes  (B,N,D) -> (B,N,D), twice

    `fade` (D,) is the log decay over one stretch. Pairs are joined first and scanned, which leaves
    one join for every second stretch.
    """
    N = logsum.shape[1]
    if N == 1:
        return logsum, mean
    earlier = logsum[:, : N - 1 : 2], mean[:, : N - 1 : 2]
    odd = _scan(*_join(*earlier, logsum[:, 1::2], mean[:, 1::2], fade), 2 * fade)
    earlier = (x[:, : (N - 1) // 2] for x in odd)
    even = _join(*earlier, logsum[:, 2::2], mean[:, 2::2], fade)
    return tuple(
        _interleave(torch.cat((x[:, :1], later), dim=1), between)
        for x, later, between in zip((logsum, mean), even, odd, strict=True)
    )


def _join(logsum, mean, next_logsum, next_mean, fade):
    """One stretch that is summed up like two neighbouring ones, the earlier of which has faded."""
    logsum = logsum + fade
    share = (next_logsum - logsum).sigmoid()
    return torch.logaddexp(logsum, next_logsum), mean + share * (next_mean - mean)


def _interleave(even, odd):
    """x_0, y_0, x_1, y_1 …, where x may be longer by one.  Shapes  (B,N,D), (B,M,D) -> (B,N+M,D)"""
    pairs = torch.stack((even[:, : odd.shape[1]], odd), dim=2).flatten(1, 2)
    return torch.cat((pairs, even[:, odd.shape[1] :]), dim=1)


def wkv_loop(
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    bonus: Tensor,
    logsum: Tensor | None = None,
    mean: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of `wkv`."""
    k, v, log_decay, bonus, logsum, mean = _start(k, v, log_decay, bonus, logsum, mean)
    outputs = []
    for t in range(k.shape[1]):
        share = (k[:, t] + bonus - logsum).sigmoid()  # of the newest among all weights
        outputs.append(mean + share * (v[:, t] - mean))
        logsum = torch.logaddexp(logsum + log_decay, k[:, t])
        mean = mean + (k[:, t] - logsum).exp() * (v[:, t] - mean)
    return torch.stack(outputs, dim=1), logsum, mean


# ---------------------------------------------------------------- RWKV-7


def generalised_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    removal: Tensor,
    rate: Tensor,
    log_decay: Tensor,
    S: Tensor | None = None,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """The delta rule with one key to remove by, another to write by, and a rate for each channel.

        S_t = exp(g_t) S_{t-1} - (a_t c_t)^T (c_t S_{t-1}) + k_t^T v_t        o_t = q_t S_t

    c is the removal key and a the rate at which its value is replaced: 1 takes away all that c
    reads, 0 nothing. `delta_rule` has c = k and one rate. As there, what each step removes depends
    on the earlier ones: a triangular system within a chunk, solved at once.

    The decay of a chunk is split into factors of queries and of keys, exp(total) and exp(-total),
    which makes every score a plain product. That is why g needs a lower bound: RWKV-7's is -0.61.

    Shapes   q, k, removal c, rate a (B,H,T,K)   v (B,H,T,V)   log_decay g (B,H,T,K), at least -2
             S (B,H,K,V), default: zeros   ->   o (B,H,T,V), S (B,H,K,V), in float32 or wider
    State    H K V numbers, for any T
    Cost     time O(T (C K + C V + K V)), memory O(C (C + K + V)) per chunk of C
    Paper    RWKV-7, Peng 2025, 2503.14456, the state update
    Twin     generalised_delta_rule_loop, equal to 1e-12 in float64
    """
    q, k, v, log_decay, S = _fill_in(q, k, v, log_decay, S)
    c = removal.to(q.dtype)
    erased = -rate.to(q.dtype) * c
    outputs = []
    with _disable_autocast(q.device):
        for q_, k_, v_, c_, erased_, g_ in _chunks((q, k, v, c, erased, log_decay), chunk):
            total = g_.cumsum(dim=2)  # (B,H,C,K): log decay since the chunk began
            c_ = c_ * (total - g_).exp()  # c reads what was there before the step's own decay
            q_, undo = q_ * total.exp(), (-total).exp()
            keys = torch.cat((k_ * undo, erased_ * undo), dim=2).transpose(2, 3)  # (B,H,K,2C)
            written, removed = (x.tril(-1) for x in (c_ @ keys).chunk(2, dim=-1))
            u = torch.linalg.solve_triangular(
                -removed, c_ @ S + written @ v_, upper=False, unitriangular=True
            )
            values = torch.cat((v_, u), dim=2)
            scores = torch.cat([x.tril() for x in (q_ @ keys).chunk(2, dim=-1)], dim=-1)
            outputs.append(scores @ values + q_ @ S)
            S = total[:, :, -1:].exp().transpose(2, 3) * (S + keys @ values)
    return torch.cat(outputs, dim=2), S


def generalised_delta_rule_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    removal: Tensor,
    rate: Tensor,
    log_decay: Tensor,
    S: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition of `generalised_delta_rule`."""
    S = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]) if S is None else S
    outputs = []
    for t in range(q.shape[2]):
        known = removal[:, :, t, None, :] @ S  # (B,H,1,V)
        removed = (rate * removal)[:, :, t, :, None] * known
        written = k[:, :, t, :, None] * v[:, :, t, None, :]
        S = log_decay[:, :, t].exp()[..., None] * S - removed + written
        outputs.append((q[:, :, t, None, :] @ S).squeeze(-2))
    return torch.stack(outputs, dim=2), S
