"""Lesson 01, Pay for attention."""

from __future__ import annotations

import math
from functools import cache

import torch

from ...model import kernels
from ...probes import measure
from ...study.figures import Chart, Heat
from ..check import SEES_THE_FUTURE, WRONG_VALUES, Case, Exercise, Mistake, normal
from ..explore import Explorer, slider, switch
from ..show import TEXT, tiny

CHANNELS, SEED = 4, 1  # of the small tensors in the lesson
FULL = 0.5  # the weight that gets the full colour
LENGTHS = (2, 4, 8, 16, 32, 64, 128, 256, 512)  # of the widget's length clock


# ---------------------------------------------------------------- exercises


def mask(T, window):
    """Which of T keys each of T queries may see: its own and those before, `window` at most."""
    place = torch.arange(T)
    age = place[:, None] - place  # how long ago the key was, seen from the query
    return (age >= 0) & (age < window)


def mask_loop(T, window):
    """The definition of `mask`: (T,T) bool."""
    keep = torch.zeros(T, T, dtype=torch.bool)
    for i in range(T):
        for j in range(max(0, i - window + 1), i + 1):
            keep[i, j] = True
    return keep


def weights(q, k):
    """The causal weights (B,T,T) of queries and keys of shape (B,T,K)."""
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(dim=-1)


def weights_loop(q, k):
    """The definition of `weights`: one query at a time, over the keys it sees."""
    table = q.new_zeros(*q.shape[:2], k.shape[1])
    for t in range(q.shape[1]):
        share = ((q[:, t, None] * k[:, : t + 1]).sum(-1) / q.shape[-1] ** 0.5).exp()
        table[:, t, : t + 1] = share / share.sum(-1, keepdim=True)
    return table


def merge(o1, l1, o2, l2):
    """The average over two pieces of the past from the averages (B,V) and log-sums (B,) of each."""
    share = torch.sigmoid(l1 - l2)[:, None]  # e^l1 / (e^l1 + e^l2), without computing e^l1
    return share * o1 + (1 - share) * o2, torch.logaddexp(l1, l2)


def merge_loop(o1, l1, o2, l2):
    """The definition of `merge`: each piece counts by the exponentials it has summed."""
    outputs, totals = torch.zeros_like(o1), torch.zeros_like(l1)
    for b in range(len(l1)):
        most = max(l1[b].item(), l2[b].item())
        first, second = math.exp(l1[b].item() - most), math.exp(l2[b].item() - most)
        outputs[b] = (first * o1[b] + second * o2[b]) / (first + second)
        totals[b] = most + math.log(first + second)
    return outputs, totals


def windows(rng):
    for T, window in ((1, 1), (5, 2), (7, 7), (6, 9), (9, 1)):
        yield Case((T, window))


def pairs(rng):
    for B, T, K in ((1, 1, 3), (2, 5, 3), (3, 11, 1), (2, 70, 5)):
        yield Case((normal(rng, B, T, K), normal(rng, B, T, K)), long=T > 64)


def halves(rng):
    for B, V, level in ((1, 1, 0.0), (2, 3, 0.0), (5, 4, -3.0), (3, 2, 800.0)):
        o1, o2 = normal(rng, B, V), normal(rng, B, V)
        yield Case((o1, level + normal(rng, B), o2, level + normal(rng, B)))


def scaled_scores(q, k):
    return q @ k.transpose(1, 2) / q.shape[-1] ** 0.5


EXERCISES = (
    Exercise(
        name="attention.mask",
        difficulty=1,
        minutes=5,
        answer=mask,
        truth=mask_loop,
        cases=windows,
        hints=(
            "Number the places: torch.arange(T). A column of them minus a row of them is a table.",
            "The table says how long ago each key was. Which ages are allowed?",
            "Its own key has age 0, so with a window of 1 only age 0 is left.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "There is no window: the oldest keys must drop out of sight.",
                lambda T, window: torch.ones(T, T).tril().bool(),
            ),
            Mistake(
                WRONG_VALUES,
                "The window is one key too wide; the query's own key counts, too.",
                lambda T, window: mask(T, window + 1),
            ),
            Mistake(
                WRONG_VALUES,
                "A query must see its own key.",
                lambda T, window: mask(T, window + 1) & ~torch.eye(T, dtype=torch.bool),
            ),
            Mistake(
                WRONG_VALUES,
                "That shows the future: rows are queries, columns are keys.",
                lambda T, window: mask(T, window).T,
            ),
        ),
    ),
    Exercise(
        name="attention.weights",
        difficulty=2,
        minutes=10,
        answer=weights,
        truth=weights_loop,
        cases=pairs,
        hints=(
            "Three steps: all scores as one matrix product, the mask, the softmax.",
            "What must a score be before the softmax, so that its weight is zero after it?",
            "Row i holds the weights of query i, so each row must sum to one.",
        ),
        mistakes=(
            Mistake(
                SEES_THE_FUTURE,
                "There is no mask.",
                lambda q, k: scaled_scores(q, k).softmax(dim=-1),
            ),
            Mistake(
                SEES_THE_FUTURE,
                "The mask came after the softmax, so the future still took its share.",
                lambda q, k: scaled_scores(q, k).softmax(dim=-1).tril(),
            ),
            Mistake(
                SEES_THE_FUTURE,
                "The mask shows one place too many.",
                lambda q, k: (
                    scaled_scores(q, k)
                    .masked_fill(torch.ones(q.shape[1], q.shape[1]).triu(2).bool(), -torch.inf)
                    .softmax(dim=-1)
                ),
            ),
            Mistake(
                WRONG_VALUES,
                "A masked score of 0 is not a weight of 0: its exponential is 1.",
                lambda q, k: scaled_scores(q, k).tril().softmax(dim=-1),
            ),
            Mistake(
                WRONG_VALUES,
                "The scores were not divided by the root of K.",
                lambda q, k: weights(q * q.shape[-1] ** 0.5, k),
            ),
            Mistake(
                WRONG_VALUES,
                "Queries and keys are swapped.",
                lambda q, k: weights(k, q),
            ),
        ),
        time_axis=1,
    ),
    Exercise(
        name="attention.merge",
        difficulty=3,
        minutes=12,
        answer=merge,
        truth=merge_loop,
        cases=halves,
        hints=(
            "Write the whole average as one fraction. What does each piece add above and below?",
            "A piece's part above the line is e**l times o, and below the line e**l.",
            "Got nan? Take the larger l away from both first: it cancels. torch.logaddexp and "
            "torch.sigmoid do so by themselves.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "The pieces do not count alike: the one with the larger sum counts more.",
                lambda o1, l1, o2, l2: ((o1 + o2) / 2, torch.logaddexp(l1, l2)),
            ),
            Mistake(
                WRONG_VALUES,
                "The shares are swapped.",
                lambda o1, l1, o2, l2: merge(o2, l1, o1, l2),
            ),
            Mistake(
                WRONG_VALUES,
                "The sums add up, their logarithms do not.",
                lambda o1, l1, o2, l2: (merge(o1, l1, o2, l2)[0], l1 + l2),
            ),
            Mistake(
                WRONG_VALUES,
                "The average of the whole is divided by both sums together.",
                lambda o1, l1, o2, l2: (o1 + o2, torch.logaddexp(l1, l2)),
            ),
        ),
    ),
)


# ---------------------------------------------------------------- widget


def letters(length: int = len(TEXT)) -> list[str]:
    """The first letters of the course's string, a space made visible."""
    return [chr(byte).replace(" ", "␣") for byte in TEXT[:length]]


def marked(table: torch.Tensor) -> list[list[float]]:
    """A (T,T) table as rows for a Heat, with what lies in the future below zero: orange."""
    return (table.tril() - table.triu(1)).tolist()


def attended(length: int, mask: bool, sharpness: float) -> torch.Tensor:
    """The weights over the first bytes of the course's string: attention that averages the rows
    of an identity matrix.

    Shapes   -> (length,length)
    """
    _, q, k = tiny(CHANNELS, SEED, "q", "k")
    q, k = q[:, None, :length], k[:, None, :length]
    each = torch.eye(length, dtype=q.dtype)[None, None]
    keep = kernels.causal_mask(length, length) if mask else None
    return kernels.softmax_attention(sharpness * q, k, each, keep)[0, 0]


@cache
def clock(mask: bool) -> dict[str, list[tuple[int, int]]]:
    """Most bytes alive at once against length, counted: the table's form and the fused one."""
    counted = {"table": [], "fused": []}
    for N in LENGTHS:
        q = k = v = torch.zeros(1, 1, N, CHANNELS)
        forms = {
            "table": lambda: kernels.softmax_attention(
                q,  # noqa: B023 - called at once
                k,  # noqa: B023
                v,  # noqa: B023
                kernels.causal_mask(N, N) if mask else None,  # noqa: B023
            ),
            "fused": lambda: kernels.causal_attention(q, k, v),  # noqa: B023
        }
        for name, run in forms.items():
            counted[name].append((N, measure.trace_memory(run).peak_bytes))
    return counted


def look(length: int = len(TEXT), mask: bool = True, sharpness: float = 1.0):
    """Who listens to whom in the course's string, beside what a table of that length costs."""
    table = attended(length, mask, sharpness)
    ahead = table.triu(1).sum().item() / length
    names = letters(length)
    heat = Heat(
        title="weights, a row for each reader" + ("" if mask else "; orange: the future"),
        rows=marked(table),
        row_names=names,
        column_names=names,
        most=FULL,
        said=f"Each byte takes {ahead:.0%} of what it reads from the future, on average; "
        f"its largest weight is {table.max(dim=1).values.mean().item():.2f}.",
    )
    curves = clock(mask)
    here = {f"{length} bytes need": dict(curves["table"])[length]}
    return [(heat, Chart(curves, "length of the text", "bytes alive at once", levels=here))]


def widget() -> Explorer:
    """Sharpen the attention, lift the mask, and see what the length costs."""
    return Explorer(
        "Which bytes does a byte listen to, and what does listening cost?",
        {
            "length": slider("length", [n for n in LENGTHS if n <= len(TEXT)], len(TEXT)),
            "sharpness": slider("sharpness", [0.0, 0.5, 1.0, 2.0, 4.0, 8.0], 1.0),
            "mask": switch("mask", True),
        },
        look,
    )
