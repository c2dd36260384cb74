"""Lesson 02, Drop the softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch.nn.functional import elu

from ...model import kernels
from ...probes import measure
from ...study.figures import Chart, Note
from ..check import (
    SEES_THE_FUTURE,
    TOO_STEEP,
    WRONG_VALUES,
    WRONG_WHEN_LONG,
    Case,
    Exercise,
    Mistake,
    normal,
)
from ..explore import Explorer, slider

HEADS = 4
SHORTEST = 16  # bytes, where the widget's curves begin

# ---------------------------------------------------------------- exercises


def reorder(q, k, v):
    """The average of all values, weighted by q k^T, for q, k (B, T, K) and v (B, T, V)."""
    matrix = k.mT @ v  # (B, K, V)
    total = k.sum(dim=1)[..., None]  # (B, K, 1)
    return q @ matrix / (q @ total)


def read_and_write(q, k, v, S):
    """One byte of linear attention, for q, k (B, K), v (B, V) and the state S (B, K, V)."""
    S = S + k[:, :, None] * v[:, None]
    return (q[:, None] @ S)[:, 0], S


def causal_sum(q, k, v):
    """Causal linear attention without a table, for q, k (B, T, K) and v (B, T, V)."""
    states = (k[..., None] * v[..., None, :]).cumsum(dim=1)  # (B, T, K, V)
    return (q[..., None, :] @ states)[..., 0, :]


def average_loop(q, k, v):
    rows = []
    for t in range(q.shape[1]):
        weight = (q[:, t, None] * k).sum(-1)  # (B, T)
        weight = weight / weight.sum(-1, keepdim=True)
        rows.append((weight[..., None] * v).sum(1))
    return torch.stack(rows, dim=1)


def step_loop(q, k, v, S):
    one_head = (x[:, None, None] for x in (q, k, v))
    o, S = kernels.linear_attention_loop(*one_head, S=S[:, None])
    return o[:, 0, 0], S[:, 0]


def causal_loop(q, k, v):
    return kernels.linear_attention_loop(q[:, None], k[:, None], v[:, None])[0][:, 0]


def forgetful_pieces(q, k, v):
    pieces = zip(*(x.split(32, dim=1) for x in (q, k, v)), strict=True)
    return torch.cat([masked_table(*piece) for piece in pieces], dim=1)


def outer(k, v):
    return k[..., None] * v[..., None, :]


SHAPES = ((1, 1, 3, 3), (2, 5, 3, 3), (3, 11, 1, 4), (2, 9, 4, 1))  # B, T, K, V


def positive(rng):
    for B, T, K, V in SHAPES:
        q, k = (normal(rng, B, T, K).exp() for _ in "qk")
        yield Case((q, k, normal(rng, B, T, V)))


def one_byte(rng):
    for B, _, K, V in SHAPES:
        q, k = (normal(rng, B, K) for _ in "qk")
        yield Case((q, k, normal(rng, B, V), normal(rng, B, K, V)))


def any_sign(rng):
    for B, T, K, V in (*SHAPES, (2, 70, 3, 2)):
        q, k = (normal(rng, B, T, K) for _ in "qk")
        yield Case((q, k, normal(rng, B, T, V)), long=T > 64)


def flat(T):
    return tuple(torch.ones(1, T, 4, dtype=torch.float64) for _ in "qkv")


EXERCISES = (
    Exercise(
        name="linear.reorder",
        difficulty=1,
        minutes=6,
        answer=reorder,
        truth=average_loop,
        cases=positive,
        hints=(
            "Multiply k and v first: what is the shape of k.mT @ v?",
            "A row of q k^T adds up to q times the sum of all keys.",
            "Give that sum a last axis of length 1, and q @ sum is one divisor for each byte.",
        ),
        mistakes=(
            Mistake(
                TOO_STEEP,
                "That is the right average, through the table.",
                lambda q, k, v: (q @ k.mT / (q @ k.mT).sum(-1, keepdim=True)) @ v,
            ),
            Mistake(
                WRONG_VALUES,
                "The weights do not add up to one: the divisor is missing.",
                lambda q, k, v: q @ (k.mT @ v),
            ),
            Mistake(
                WRONG_VALUES,
                "That divides by the sum of the keys alone; the query belongs in it.",
                lambda q, k, v: q @ (k.mT @ v) / k.sum((1, 2))[:, None, None],
            ),
            Mistake(
                WRONG_VALUES,
                "The divisor adds up only the keys so far; without a mask it takes all of them.",
                lambda q, k, v: q @ (k.mT @ v) / (q * k.cumsum(dim=1)).sum(-1, keepdim=True),
            ),
            Mistake(
                WRONG_VALUES,
                "q and k are features already; do not map them once more.",
                lambda q, k, v: reorder(elu(q) + 1, elu(k) + 1, v),
            ),
            Mistake(
                WRONG_VALUES,
                "Keys and values are swapped.",
                lambda q, k, v: reorder(q, v, k),
            ),
            Mistake(
                WRONG_VALUES,
                "One matrix went to every row of the batch.",
                lambda q, k, v: (
                    q @ (k.mT @ v).sum(0) / (q @ k.sum((0, 1))[:, None])  # one text, not many
                ),
            ),
            Mistake(
                WRONG_VALUES,
                "The softmax is still in it; here the weights are q k^T themselves.",
                lambda q, k, v: (q @ k.mT).softmax(-1) @ v,
            ),
        ),
        steepest=1.1,
        sized=flat,
    ),
    Exercise(
        name="linear.step",
        difficulty=2,
        minutes=8,
        answer=read_and_write,
        truth=step_loop,
        cases=one_byte,
        hints=(
            "Write first, then read: a byte sees itself.",
            "The outer product of k and v has k along the rows: k[:, :, None] * v[:, None].",
            "To read, make q a matrix of one row, and take the row away afterwards.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "It reads before it writes, so a byte does not see itself.",
                lambda q, k, v, S: ((q[:, None] @ S)[:, 0], read_and_write(q, k, v, S)[1]),
            ),
            Mistake(
                WRONG_VALUES,
                "The outer product lies on its side: keys belong along the rows.",
                lambda q, k, v, S: read_and_write(q, v, k, S),
            ),
            Mistake(
                WRONG_VALUES,
                "The state was replaced, not added to.",
                lambda q, k, v, S: read_and_write(q, k, v, torch.zeros_like(S)),
            ),
            Mistake(
                WRONG_VALUES,
                "The output is right, but the state came back as it was before the write.",
                lambda q, k, v, S: (read_and_write(q, k, v, S)[0], S),
            ),
            Mistake(
                WRONG_VALUES,
                "`k.T @ v` adds up over the batch; each row has a state of its own.",
                lambda q, k, v, S: ((q[:, None] @ (S + k.T @ v))[:, 0], S + k.T @ v),
            ),
            Mistake(
                WRONG_VALUES,
                "One row's state went to every row of the batch.",
                lambda q, k, v, S: read_and_write(q, k, v, S[:1].expand_as(S)),
            ),
        ),
    ),
    Exercise(
        name="linear.causal",
        difficulty=3,
        minutes=15,
        answer=causal_sum,
        truth=causal_loop,
        cases=any_sign,
        hints=(
            "A running sum needs no mask: what is not yet added is not yet seen.",
            "Each byte adds one outer product, (K, V). All of them at once are (B, T, K, V).",
            "cumsum over time gives the state at every byte; each query then reads its own.",
        ),
        mistakes=(
            Mistake(
                TOO_STEEP,
                "That is the masked table: right, and as wide as it is long.",
                lambda q, k, v: masked_table(q, k, v),
            ),
            Mistake(
                SEES_THE_FUTURE,
                "There is no mask, and nothing in its place.",
                lambda q, k, v: q @ (k.mT @ v),
            ),
            Mistake(
                WRONG_VALUES,
                "Each byte misses itself: the mask is off by one.",
                lambda q, k, v: (q @ k.mT).tril(-1) @ v,
            ),
            Mistake(
                WRONG_VALUES,
                "The running sum goes over the channels, not over time.",
                lambda q, k, v: (q[..., None, :] @ outer(k, v).cumsum(dim=2))[..., 0, :],
            ),
            Mistake(
                WRONG_VALUES,
                "The running sum goes over the batch, not over time.",
                lambda q, k, v: (q[..., None, :] @ outer(k, v).cumsum(dim=0))[..., 0, :],
            ),
            Mistake(
                WRONG_VALUES,
                "One state was shared by all rows of the batch.",
                lambda q, k, v: (q[..., None, :] @ outer(k, v).sum(0).cumsum(dim=0))[..., 0, :],
            ),
            Mistake(
                WRONG_VALUES,
                "It was divided by the normaliser; here there is none.",
                lambda q, k, v: causal_sum(q, k, v) / (q * k.cumsum(1)).sum(-1, keepdim=True),
            ),
            Mistake(
                WRONG_VALUES,
                "Channels were multiplied one by one; the outer product pairs each with each.",
                lambda q, k, v: q * (k * v).cumsum(dim=1),
            ),
            Mistake(
                WRONG_WHEN_LONG,
                "Each piece begins with an empty state.",
                forgetful_pieces,
            ),
        ),
        time_axis=1,
        steepest=1.1,
        sized=flat,
    ),
)


# ---------------------------------------------------------------- the two orders


def masked_table(q, k, v):
    """Linear attention through the table of all pairs.

    Shapes   q, k (..., T, K)   v (..., T, V)  ->  (..., T, V)
    """
    return (q @ k.mT).tril() @ v


@cache
def in_chunks(chunk: int) -> Callable:
    """Linear attention by the library, in chunks of so many bytes."""

    def order(q, k, v):
        return kernels.linear_attention(q, k, v, chunk=chunk)[0]

    return order


@cache
def operations_of(order, length: int, width: int) -> int:
    """What four heads take, in multiplications and additions."""
    q, k, v = torch.zeros(3, 1, HEADS, length, width)
    return measure.count_flops(lambda: order(q, k, v))


def milliseconds_of(order, length: int, width: int) -> float:
    """What four heads take, by the clock."""
    q, k, v = torch.zeros(3, 1, HEADS, length, width)
    return 1e3 * measure.median_seconds(lambda: order(q, k, v), repeats=3)


def cheaper_from(lengths, table, chunks) -> float | None:
    """The length from which the chunks stay cheaper; none if they are not so at the end.

    Times are noisy and may cross more than once, so it is the last crossing that counts.
    """
    dearer = [i for i, (a, b) in enumerate(zip(table, chunks, strict=True)) if a <= b]
    last = dearer[-1] if dearer else 0
    return measure.crossover(lengths[last:], table[last:], chunks[last:])


# ---------------------------------------------------------------- widget


def race_orders(width: int = 64, length: int = 1024, chunk: int = 32) -> Iterator[list]:
    """Both orders at doubling lengths: one page for each length, up to the whole picture."""
    orders = {"table": masked_table, "chunks": in_chunks(chunk)}
    lengths, work, times = [], {name: [] for name in orders}, {name: [] for name in orders}
    while not lengths or lengths[-1] < length:
        lengths.append(2 * lengths[-1] if lengths else SHORTEST)
        for name, order in orders.items():
            work[name].append(operations_of(order, lengths[-1], width))
            times[name].append(milliseconds_of(order, lengths[-1], width))
        said = [f"counted: {since(lengths, work)}", f"measured: {since(lengths, times)}"]
        yield [
            Chart(along(lengths, work), "length in bytes", "operations, counted"),
            Chart(along(lengths, times), "length in bytes", "milliseconds, measured"),
            Note(f"Heads {width} wide: where chunks of {chunk} become cheaper", said),
        ]


def along(lengths, curves):
    return {name: list(zip(lengths, ys, strict=True)) for name, ys in curves.items()}


def since(lengths, curves) -> str:
    """From which length the chunks are cheaper, in words."""
    found = cheaper_from(lengths, curves["table"], curves["chunks"])
    return f"not up to {lengths[-1]:,} bytes" if found is None else f"from {found:,.0f} bytes"


def orders(width: int = 64, length: int = 1024, chunk: int = 32) -> list:
    """The whole picture of a race."""
    *_, last = race_orders(width, length, chunk)
    return last


def widget() -> Explorer:
    """The table against the chunks, for any head, length and chunk."""
    return Explorer(
        "Which chunk is best for counting, and which for your clock?",
        {
            "width": slider("head width", [8, 16, 32, 64, 128], 64),
            "length": slider("longest", [128, 256, 512, 1024], 1024),
            "chunk": slider("chunk", [16, 32, 64, 128], 32),
        },
        race_orders,
    )
