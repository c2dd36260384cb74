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
    chunk: int = 16,
) -> tuple[Tensor, Tensor, Tensor]:
    """Average the values of each channel, by weights that fade with age; the newest has a bonus.

        o_t = sum_i w_i v_i / sum_i w_i      w_i = exp(k_i + (t-1-i) g) for i < t
                                             w_t = exp(k_t + u)

    This is softmax attention in which no score depends on a query, so that what came before can be
    one more key: its score is the logarithm of the weights' sum, its value their average. A chunk
    is a table of scores for each channel; softmax keeps it finite, however large k is.

    Shapes   k, v (B,T,D)   log_decay g, bonus u (D,)   logsum, mean (B,D), default: nothing came
             before   ->   o (B,T,D), logsum, mean (B,D), in float32 or wider
    State    2 D numbers, for any T: the log of the sum of exp(k_i + (t-i) g), and the average
             under these weights
    Cost     time and memory O(T C D) in chunks of C
    Paper    RWKV, Peng 2023, 2305.13048, the WKV operator
    Twin     wkv_loop, equal to 1e-12 in float64
    """
    k, v, log_decay, bonus, logsum, mean = _start(k, v, log_decay, bonus, logsum, mean)
    outputs = []
    with _disable_autocast(k.device):
        table = _scores_by_age(log_decay, bonus, min(chunk, k.shape[1]))
        for k_, v_ in zip(k.split(chunk, dim=1), v.split(chunk, dim=1), strict=True):
            keys = torch.cat((logsum[:, None], k_), dim=1).transpose(1, 2)  # (B,D,1+C)
            values = torch.cat((mean[:, None], v_), dim=1).transpose(1, 2)
            size = keys.shape[-1]
            scores = keys[:, :, None] + table[:, :size, :size]  # (B,D,C+1,1+C)
            means = (scores.softmax(dim=-1) @ values[..., None])[..., 0]
            outputs.append(means[..., :-1])
            logsum, mean = scores[:, :, -1].logsumexp(dim=-1), means[..., -1]
    return torch.cat(outputs, dim=2).transpose(1, 2), logsum, mean.clone()


def _start(k, v, log_decay, bonus, logsum, mean):
    """A weight of zero for a missing state, and all tensors in float32 or in k's wider dtype."""
    k = _widen(k)
    logsum = k.new_full(k[:, 0].shape, float("-inf")) if logsum is None else logsum
    mean = torch.zeros_like(k[:, 0]) if mean is None else mean
    return k, *(x.to(k.dtype) for x in (v, log_decay, bonus, logsum, mean))


def _scores_by_age(log_decay, bonus, C):
    """What age adds to the score of each key: (D,C+1,1+C).

    The rows are the steps of a chunk, and then what the chunk leaves, which has no newest key. The
    columns are what came before the chunk, and then its steps.
    """
    steps = torch.arange(C + 1, device=log_decay.device)[:, None]
    age = torch.cat((steps, steps - 1 - steps[:-1, 0]), dim=1)  # -1 for the newest, less for later
    faded = log_decay[:, None, None] * age.clamp(min=0)
    return torch.where(age == -1, bonus[:, None, None], faded).masked_fill(age < -1, float("-inf"))


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
    c, a = removal.to(q.dtype), rate.to(q.dtype)
    outputs = []
    with _disable_autocast(q.device):
        for q_, k_, v_, c_, a_, g_ in _chunks((q, k, v, c, a, log_decay), chunk):
            total = g_.cumsum(dim=2)  # (B,H,C,K): log decay since the chunk began
            e_ = -a_ * c_
            c_ = c_ * (total - g_).exp()  # c reads what was there before the step's own decay
            q_ = q_ * total.exp()
            keys = torch.cat((k_ * (-total).exp(), e_ * (-total).exp()), dim=2).transpose(2, 3)
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
