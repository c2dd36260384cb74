"""Exercises of lesson 02, Drop the softmax."""

from __future__ import annotations

import torch
from torch.nn.functional import elu

from ....model import kernels
from ...exercise import Case, Exercise, normal, shaped


def masked_table(q, k, v):
    """Linear attention through the table of all pairs.

    Shapes   q, k (..., T, K)   v (..., T, V)  ->  (..., T, V)
    """
    return (q @ k.mT).tril() @ v


def reorder(q, k, v):
    """The average of all values, weighted by q k^T, for q, k (B, T, K) and v (B, T, V)."""
    matrix = k.mT @ v  # (B, K, V)
    total = k.sum(dim=1)[..., None]  # (B, K, 1)
    return q @ matrix / (q @ total)


def step(q, k, v, S):
    """One byte of linear attention, for q, k (B, K), v (B, V) and the state S (B, K, V)."""
    S = S + k[:, :, None] * v[:, None]
    return (q[:, None] @ S)[:, 0], S


def causal(q, k, v):
    """Causal linear attention without a table, for q, k (B, T, K) and v (B, T, V)."""
    states = (k[..., None] * v[..., None, :]).cumsum(dim=1)  # (B, T, K, V)
    return (q[..., None, :] @ states)[..., 0, :]


def _average_loop(q, k, v):
    rows = []
    for t in range(q.shape[1]):
        weight = (q[:, t, None] * k).sum(-1)  # (B, T)
        weight = weight / weight.sum(-1, keepdim=True)
        rows.append((weight[..., None] * v).sum(1))
    return torch.stack(rows, dim=1)


def _step_loop(q, k, v, S):
    one_head = (x[:, None, None] for x in (q, k, v))
    o, S = kernels.linear_attention_loop(*one_head, S=S[:, None])
    return o[:, 0, 0], S[:, 0]


def _causal_loop(q, k, v):
    return kernels.linear_attention_loop(q[:, None], k[:, None], v[:, None])[0][:, 0]


def _forgetful_pieces(q, k, v):
    pieces = zip(*(x.split(32, dim=1) for x in (q, k, v)), strict=True)
    return torch.cat([masked_table(*piece) for piece in pieces], dim=1)


def outer(k, v):
    return k[..., None] * v[..., None, :]


SHAPES = ((1, 1, 3, 3), (2, 5, 3, 3), (3, 11, 1, 4), (2, 9, 4, 1), (2, 70, 3, 2))  # B, T, K, V


def _positive(rng):
    for B, T, K, V in SHAPES[:-1]:
        q, k = (normal(rng, B, T, K).exp() for _ in "qk")
        yield Case((q, k, normal(rng, B, T, V)))


def _flat(T):
    return tuple(torch.ones(1, T, 4, dtype=torch.float64) for _ in "qkv")


def crossover(K, V, C):
    """From which length on chunks of C bytes need fewer operations than the table."""
    table = K + V  # for each byte, and for each byte that it looks at
    chunks = C * (K + V) + 2 * K * V  # for each byte: the small table, writing S, reading S
    return chunks / table


EXERCISES = (
    Exercise(
        reorder,
        truth=_average_loop,
        cases=_positive,
        hints=(
            "Multiply k and v first: what is the shape of k.mT @ v?",
            "A row of q k^T adds up to q times the sum of all keys.",
            "Give that sum a last axis of length 1, and q @ sum is one divisor for each byte.",
        ),
        mistakes={
            "That is the right average, through the table.": lambda q, k, v: (
                (q @ k.mT / (q @ k.mT).sum(-1, keepdim=True)) @ v
            ),
            "The weights do not add up to one: the divisor is missing.": lambda q, k, v: (
                q @ (k.mT @ v)
            ),
            "That divides by the sum of the keys only; the query belongs in it.": lambda q, k, v: (
                q @ (k.mT @ v) / k.sum((1, 2))[:, None, None]
            ),
            "The divisor adds up only the keys so far; "
            "without a mask it takes all of them.": lambda q, k, v: (
                q @ (k.mT @ v) / (q * k.cumsum(dim=1)).sum(-1, keepdim=True)
            ),
            "q and k are features already; do not map them once more.": lambda q, k, v: reorder(
                elu(q) + 1, elu(k) + 1, v
            ),
            "Keys and values are swapped.": lambda q, k, v: reorder(q, v, k),
            "One matrix went to every row of the batch.": lambda q, k, v: (
                q @ (k.mT @ v).sum(0) / (q @ k.sum((0, 1))[:, None])  # one text, not many
            ),
            "The softmax is still in it; here the weights are q k^T themselves.": lambda q, k, v: (
                (q @ k.mT).softmax(-1) @ v
            ),
        },
        steepest=1.1,
        sized=_flat,
    ),
    Exercise(
        step,
        truth=_step_loop,
        cases=shaped("B K, B K, B V, B K V", (1, 3, 3), (2, 3, 3), (3, 1, 4), (2, 4, 1)),
        hints=(
            "Write first, then read: a byte sees itself.",
            "The outer product of k and v has k along the rows: k[:, :, None] * v[:, None].",
            "To read, make q a matrix of one row, and take the row away afterwards.",
        ),
        mistakes={
            "It reads before it writes, so a byte does not see itself.": lambda q, k, v, S: (
                (q[:, None] @ S)[:, 0],
                step(q, k, v, S)[1],
            ),
            "The outer product lies on its side: keys belong along the rows.": lambda q, k, v, S: (
                step(q, v, k, S)
            ),
            "The state was replaced, not added to.": lambda q, k, v, S: step(
                q, k, v, torch.zeros_like(S)
            ),
            "The output is right, "
            "but the state came back as it was before the write.": lambda q, k, v, S: (
                step(q, k, v, S)[0],
                S,
            ),
            "`k.T @ v` adds up over the batch; "
            "each row has a state of its own.": lambda q, k, v, S: (
                (q[:, None] @ (S + k.T @ v))[:, 0],
                S + k.T @ v,
            ),
            "One row's state went to every row of the batch.": lambda q, k, v, S: step(
                q, k, v, S[:1].expand_as(S)
            ),
        },
    ),
    Exercise(
        causal,
        truth=_causal_loop,
        cases=shaped("B T K, B T K, B T V", *SHAPES),
        hints=(
            "A running sum needs no mask: what is not yet added is not yet seen.",
            "Each byte adds one outer product, (K, V). All of them at once are (B, T, K, V).",
            "cumsum over time gives the state at every byte; each query then reads its own.",
        ),
        mistakes={
            "That is the masked table: right, and as wide as it is long.": lambda q, k, v: (
                masked_table(q, k, v)
            ),
            "There is no mask, and nothing in its place.": lambda q, k, v: q @ (k.mT @ v),
            "Each byte misses itself: the mask is off by one.": lambda q, k, v: (
                (q @ k.mT).tril(-1) @ v
            ),
            "The running sum goes over the channels, not over time.": lambda q, k, v: (
                q[..., None, :] @ outer(k, v).cumsum(dim=2)
            )[..., 0, :],
            "The running sum goes over the batch, not over time.": lambda q, k, v: (
                q[..., None, :] @ outer(k, v).cumsum(dim=0)
            )[..., 0, :],
            "One state was shared by all rows of the batch.": lambda q, k, v: (
                q[..., None, :] @ outer(k, v).sum(0).cumsum(dim=0)
            )[..., 0, :],
            "It was divided by the normaliser; here there is none.": lambda q, k, v: (
                causal(q, k, v) / (q * k.cumsum(1)).sum(-1, keepdim=True)
            ),
            "Channels were multiplied one by one; "
            "the outer product pairs each with each.": lambda q, k, v: q * (k * v).cumsum(dim=1),
            "Each piece begins with an empty state.": _forgetful_pieces,
        },
        time_axis=1,
        steepest=1.1,
        sized=_flat,
    ),
    Exercise(
        crossover,
        cases=lambda rng: (Case(sizes) for sizes in ((64, 16, 32), (16, 64, 8), (1, 1, 1))),
        hints=(
            "For each byte, the table makes N scores from K numbers each, and adds N rows of V.",
            "A chunk does the same with C in place of N. How large is S, and how often is it used?",
        ),
        mistakes={
            "That is right only where keys and values are equally wide.": lambda K, V, C: C + K,
            "S is written and read: both cost K V operations.": lambda K, V, C: C + K * V / (K + V),
            "That is the mean of both widths; try K = 1 and a large V.": lambda K, V, C: (
                C + (K + V) / 2
            ),
            "The small table within the chunk costs something, too.": lambda K, V, C: (
                2 * K * V / (K + V)
            ),
        },
    ),
)
