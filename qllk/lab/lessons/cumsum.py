"""Lesson 03, Keep a running sum."""

from __future__ import annotations

import torch

from ...model import kernels
from ...study.figures import Chart, Heat
from ..check import SEES_THE_FUTURE, WRONG_VALUES, Case, Exercise, Mistake, normal
from ..explore import Explorer, choice, slider
from ..show import TEXT, tiny

CHANNELS = 4
HALF_LIFE = 2.0  # bytes, of the forgetting rule in the widget


# ---------------------------------------------------------------- exercises


def kernel(q, k, v):
    """The kernel without a loop, for inputs of shape (B, T, D)."""
    return q * (k * v).cumsum(dim=1)


def resume(k, v, S):
    """All sums of k * v that follow a state S of shape (B, D), and the state after the last one."""
    sums = S[:, None] + (k * v).cumsum(dim=1)
    return sums, sums[:, -1]


def state_numbers(d_model, heads):
    """How many numbers the state of linear attention holds, its heads as wide as they can be."""
    width = d_model // heads
    return heads * width * width


def triples(rng):
    for B, T, D in ((1, 1, 3), (2, 5, 3), (3, 11, 1), (2, 70, 5)):
        yield Case(tuple(normal(rng, B, T, D) for _ in "qkv"), long=T > 64)


def continued(rng):
    for B, T, D in ((1, 1, 3), (2, 5, 3), (3, 11, 1)):
        yield Case((normal(rng, B, T, D), normal(rng, B, T, D), normal(rng, B, D)))


def sizes(rng):
    for d_model, heads in ((8, 2), (8, 8), (12, 1), (256, 4)):
        yield Case((d_model, heads))


EXERCISES = (
    Exercise(
        name="cumsum.kernel",
        difficulty=1,
        minutes=5,
        answer=kernel,
        truth=lambda q, k, v: kernels.cumsum_kernel_loop(q, k, v)[0],
        cases=triples,
        hints=(
            "Three lines of the loop become three elementwise operations on whole tensors.",
            "torch's cumsum adds up along one axis: which of B, T and D is time?",
            "The query multiplies the finished sum, so it stays outside.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "That adds up over the channels, not over time.",
                lambda q, k, v: q * (k * v).cumsum(dim=2),
            ),
            Mistake(
                SEES_THE_FUTURE,
                "That is the sum over all of time, the future included.",
                lambda q, k, v: q * (k * v).sum(dim=1, keepdim=True),
            ),
            Mistake(
                WRONG_VALUES,
                "The query went into the sum; it belongs to its own step alone.",
                lambda q, k, v: (q * k * v).cumsum(dim=1),
            ),
            Mistake(
                WRONG_VALUES,
                "Each sum misses its own step.",
                lambda q, k, v: q * ((k * v).cumsum(dim=1) - k * v),
            ),
        ),
        time_axis=1,
        steepest=1.1,
        sized=lambda T: tuple(torch.zeros(1, T, 4, dtype=torch.float64) for _ in "qkv"),
    ),
    Exercise(
        name="cumsum.resume",
        difficulty=2,
        minutes=8,
        answer=resume,
        truth=lambda k, v, S: kernels.running_sum_loop(k * v, S=S),
        cases=continued,
        hints=(
            "What came before is one more term of every sum.",
            "S has no time axis. Give it one of length 1, and torch spreads it over all steps.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "The state that came before is missing.",
                lambda k, v, S: ((k * v).cumsum(dim=1), (k * v).sum(dim=1)),
            ),
            Mistake(
                WRONG_VALUES,
                "One row's state went to every row of the batch.",
                lambda k, v, S: resume(k, v, S[:1].expand_as(S)),
            ),
            Mistake(
                WRONG_VALUES,
                "The state was added up again at each step.",
                lambda k, v, S: (
                    (k * v + S[:, None]).cumsum(dim=1),
                    (k * v + S[:, None]).sum(dim=1),
                ),
            ),
        ),
    ),
    Exercise(
        name="cumsum.state_numbers",
        difficulty=1,
        minutes=4,
        answer=state_numbers,
        cases=sizes,
        hints=(
            "How wide is one head, and what is the shape of its state?",
            "One head of width w holds a w by w matrix.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "That is one matrix as wide as the model.",
                lambda d_model, heads: d_model**2,
            ),
            Mistake(
                WRONG_VALUES,
                "That is one number for each channel: right for width one alone.",
                lambda d_model, heads: d_model,
            ),
            Mistake(
                WRONG_VALUES,
                "That is one head; there are several.",
                lambda d_model, heads: (d_model // heads) ** 2,
            ),
        ),
    ),
)


# ---------------------------------------------------------------- widget


def watch(steps: int = 16, rule: str = "keep all"):
    """The state after so many bytes of the course's string, and how it came to be."""
    _, q, k, v = tiny(CHANNELS, 3, "q", "k", "v")
    decay = None
    if rule != "keep all":
        decay = torch.full((CHANNELS,), -torch.log(torch.tensor(2.0)).item() / HALF_LIFE)
    sums, _ = kernels.running_sum_loop(k * v, log_decay=decay)
    now = steps - 1
    table = Heat(
        title=f"byte {steps} of {len(TEXT)}: {chr(TEXT[now])!r}",
        rows=[x[0, now].tolist() for x in (k * v, sums, q * sums)],
        row_names=["k v, new", "S, kept", "q S, read"],
        column_names=[f"{i}" for i in range(CHANNELS)],
        numbers=True,
        most=sums.abs().max().item(),
        said=f"After {steps} bytes S is {' '.join(f'{s:.2f}' for s in sums[0, now].tolist())}.",
    )
    path = {
        f"channel {c}": [(t + 1, sums[0, t, c].item()) for t in range(steps)]
        for c in range(CHANNELS)
    }
    return [(table, Chart(path, "bytes read", "state S", log=""))]


def widget() -> Explorer:
    """Step through the bytes and watch the state."""
    return Explorer(
        "Which byte changed the state most, and does the state ever come back?",
        {
            "steps": slider("bytes", list(range(1, len(TEXT) + 1)), 4),
            "rule": choice("rule", ["keep all", "forget half in 2 bytes"]),
        },
        watch,
    )
