"""Lesson 04, Watch the state grow."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from ...model import kernels, recurrent
from ...study.axes import format_number
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
from ..explore import Explorer, choice, slider

CHANNELS, STEPS = 32, 4096
MEAN, LOUD = 0.1, 100.0
INPUTS = ("constant", "random", f"random, mean {MEAN}", f"constant, {LOUD:.0f}")
HALF_LIVES = ("none", 1024, 64, 4)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# ---------------------------------------------------------------- exercises


def half_life(steps):
    """The factor that, applied once a step, leaves one half after so many steps."""
    return 0.5 ** (1 / steps)


def fading_sum(x, a):
    """Fade the sum by a, then add what is new: x (B,T,D), a (D,) -> sums (B,T,D)."""
    S, sums = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        S = a * S + x[:, t]
        sums.append(S)
    return torch.stack(sums, dim=1)


def stall(bits, step):
    """Where a sum stops: a float of so many significant bits, adding a power of two each time."""
    return step * 2**bits


def stall_loop(bits, step):
    """The definition of `stall`: add until nothing changes any more."""
    total = 0.0
    while (larger := rounded(total + step, bits)) != total:
        total = larger
    return total


def rounded(x, bits):
    """The nearest number of so many significant bits; in the middle of two, the even one."""
    share, exponent = math.frexp(x)
    return math.ldexp(round(math.ldexp(share, bits)), exponent - bits)


def stepped(x, rule):
    """All states of S = rule(S, x_t), one step at a time."""
    S, sums = torch.zeros_like(x[:, 0]), []
    for new in x.unbind(1):
        S = rule(S, new)
        sums.append(S)
    return torch.stack(sums, dim=1)


def by_powers(x, a):
    """A matrix of powers for each channel: right, and as large as the square of the length."""
    steps = torch.arange(x.shape[1])
    ages = (steps[:, None] - steps).clamp(min=0)[..., None]  # (T,T,1)
    weights = torch.where((steps[:, None] >= steps)[..., None], a**ages, 0.0)
    return torch.einsum("tsd,bsd->btd", weights, x)


def by_quotients(x, a, least=0.0):
    """Divide by the power, add up, multiply by the power: right until the powers run out."""
    powers = (a ** torch.arange(x.shape[1])[:, None]).clamp(min=least)  # (T,D)
    return powers * (x / powers).cumsum(dim=1)


def lives(rng):
    for steps in (1, 2, 5, 1000):
        yield Case((steps,))


def faded(rng):
    for B, T, D in ((2, 5, 3), (1, 1, 3), (3, 11, 1)):
        yield Case((normal(rng, B, T, D), 0.5 + 0.5 * torch.rand(D, generator=rng).double()))
    # The 104th power of a thousandth is the first whose inverse is too large for float64.
    yield Case((normal(rng, 1, 106, 2).abs() + 1, torch.tensor([1e-3, 0.9]).double()), long=True)


def formats(rng):
    for bits, step in ((8, 1.0), (3, 1.0), (11, 1.0), (8, 4.0), (5, 0.25)):
        yield Case((bits, step))


EXERCISES = (
    Exercise(
        name="growth.half_life",
        difficulty=1,
        minutes=4,
        answer=half_life,
        cases=lives,
        hints=(
            "Applied `steps` times, the factor becomes its own power.",
            "Which number, to the power of `steps`, is one half?",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "That halves at each step, whatever the half-life.",
                lambda steps: 0.5,
            ),
            Mistake(
                WRONG_VALUES,
                "Applied once a step, that leaves about 1/e after so many steps, not one half.",
                lambda steps: 1 - 1 / steps,
            ),
            Mistake(
                WRONG_VALUES,
                "That leaves 1/e after so many steps; wanted is one half.",
                lambda steps: math.exp(-1 / steps),
            ),
            Mistake(
                WRONG_VALUES,
                "That halves at each step: it is what is left after all the steps.",
                lambda steps: 0.5**steps,
            ),
            Mistake(
                WRONG_VALUES,
                "That is the logarithm of the factor.",
                lambda steps: -math.log(2) / steps,
            ),
            Mistake(
                WRONG_VALUES,
                "That grows: it doubles in so many steps.",
                lambda steps: 2 ** (1 / steps),
            ),
        ),
    ),
    Exercise(
        name="growth.fading_sum",
        difficulty=2,
        minutes=10,
        answer=fading_sum,
        truth=lambda x, a: kernels.running_sum_loop(x, log_decay=a.log())[0],
        cases=faded,
        hints=(
            "Two things happen in a step, one after the other. Which of them comes first?",
            "The newest term is not faded yet; the one before it is faded once.",
            "A loop that carries one state of shape (B, D) is enough.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "The newest term is faded in the step that adds it.",
                lambda x, a: stepped(x, lambda S, new: a * (S + new)),
            ),
            Mistake(
                WRONG_VALUES,
                "Only the new term is faded; the sum before it never fades.",
                lambda x, a: stepped(x, lambda S, new: S + a * new),
            ),
            Mistake(
                WRONG_VALUES,
                "Nothing fades: the factor is not used.",
                lambda x, a: x.cumsum(dim=1),
            ),
            Mistake(
                WRONG_VALUES,
                "That is a running mean: the new term is scaled down.",
                lambda x, a: stepped(x, lambda S, new: a * S + (1 - a) * new),
            ),
            Mistake(
                WRONG_VALUES,
                "The power counts from the first step; it must be the age of the term.",
                lambda x, a: (a ** torch.arange(x.shape[1])[:, None] * x).cumsum(dim=1),
            ),
            Mistake(
                WRONG_VALUES,
                "The sum runs over the batch, not over time.",
                lambda x, a: fading_sum(x.transpose(0, 1), a).transpose(0, 1),
            ),
            Mistake(
                WRONG_WHEN_LONG,
                "The powers you divide by get too small; held above 0, they stop fading the sum.",
                lambda x, a: by_quotients(x, a, least=1e-12),
            ),
            Mistake(
                SEES_THE_FUTURE,
                "The sum runs from the end to the beginning.",
                lambda x, a: fading_sum(x.flip(1), a).flip(1),
            ),
            Mistake(
                TOO_STEEP,
                "Every pair of steps has a weight of its own.",
                by_powers,
            ),
        ),
        time_axis=1,
        steepest=1.3,
        sized=lambda T: (
            torch.zeros(1, T, 4, dtype=torch.float64),
            torch.full((4,), 0.9, dtype=torch.float64),
        ),
    ),
    Exercise(
        name="growth.stall",
        difficulty=2,
        minutes=8,
        answer=stall,
        truth=stall_loop,
        cases=formats,
        hints=(
            "With `bits` binary digits, how far can you count before a digit is missing?",
            "Above that, neighbours are two apart. Half of a gap rounds to the even neighbour.",
            "Scaling everything by a power of two changes no digit.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "There neighbours are still one step apart, so the sum goes on.",
                lambda bits, step: step * 2 ** (bits - 1),
            ),
            Mistake(
                WRONG_VALUES,
                "One more step still fits: the next power of two has but one digit that is not 0.",
                lambda bits, step: step * (2**bits - 1),
            ),
            Mistake(
                WRONG_VALUES,
                "That is right for steps of 1; larger ones are felt for longer.",
                lambda bits, step: 2**bits,
            ),
            Mistake(
                WRONG_VALUES,
                "Larger steps carry the sum further, not less far.",
                lambda bits, step: 2**bits / step,
            ),
            Mistake(
                WRONG_VALUES,
                "It stops sooner: the first digit, which is never 0, is one of the bits.",
                lambda bits, step: step * 2 ** (bits + 1),
            ),
        ),
    ),
)


# ---------------------------------------------------------------- widget


def terms(kind: str, steps: int) -> torch.Tensor:
    """What is added at each step, in float64: (1,steps,CHANNELS)."""
    shape = (1, steps, CHANNELS)
    if kind.startswith("random"):
        x = normal(torch.Generator().manual_seed(0), *shape)
        return x + MEAN if kind.endswith(str(MEAN)) else x
    size = LOUD if kind.endswith(f"{LOUD:.0f}") else 1.0
    return torch.full(shape, size, dtype=torch.float64)


@lru_cache(maxsize=64)
def summed(kind: str, half_life, dtype: torch.dtype, steps: int) -> torch.Tensor:
    """The sum so far at each step, by the loop in its dtype: (1,steps,CHANNELS)."""
    x = terms(kind, steps).to(dtype)
    if half_life == "none":
        return kernels.running_sum_loop(x)[0]
    log_decay = torch.full((CHANNELS,), -math.log(2) / half_life, dtype=dtype)
    return kernels.running_sum_loop(x, log_decay=log_decay)[0]


def grown(kind="constant", half_life="none", normaliser="none", precision="bfloat16", steps=STEPS):
    """The state's size over time: kept in a precision, without rounding, and as it is read."""
    kept = summed(kind, half_life, PRECISIONS[precision], steps)
    exact = summed(kind, half_life, torch.float64, steps)
    read = recurrent.NORMALISERS[normaliser](kept, torch.arange(1, steps + 1)[:, None])
    lines = {"kept": over_time(kept), "in float64": over_time(exact), "read": over_time(read)}
    return [Chart(lines, "steps", "root mean square"), fate(kept[0], exact[0], precision)]


def over_time(sums) -> list[tuple[int, float]]:
    """Root mean square over the channels at lengths evenly apart on a log scale."""
    size = sums[0].double().square().mean(dim=-1).sqrt().tolist()
    steps = len(size)
    found = sorted({round(2 ** (i / 2)) for i in range(2 * math.ceil(math.log2(steps)) + 1)})
    return [(t, size[t - 1]) for t in found if t <= steps]


def fate(kept, exact, precision) -> Note:
    """In words: whether the state still moves, and how far it is off. Shapes  (T,D) both"""
    steps = len(kept)
    moved = (kept[1:] != kept[:-1]).any(dim=-1).nonzero()
    last = moved[-1].item() + 2 if len(moved) else 1
    if not kept[-1].isfinite().all():
        said = f"It overflows at step {last:,} and is lost."
    elif last < steps:
        said = f"It has not moved since step {last:,}."
    else:
        said = f"It still moves at step {steps:,}."
    off = (kept[-1].double() - exact[-1]).square().mean().sqrt().item()
    off = off / exact[-1].square().mean().sqrt().item()
    wrong = "In the end it is not a finite number."
    if math.isfinite(off):
        percent = format_number(100 * off)
        wrong = f"In the end the error is {percent} % as large as the state in float64."
    return Note(f"The state in {precision}", [said, wrong])


def widget() -> Explorer:
    """Feed a sum for a long time, under a rule and in a precision, and watch its size."""
    return Explorer(
        "Which rule keeps the state itself small, and which only what is read from it?",
        {
            "kind": choice("input", list(INPUTS)),
            "half_life": slider("half-life", list(HALF_LIVES)),
            "normaliser": choice("normaliser", list(recurrent.NORMALISERS)),
            "precision": choice("precision", list(PRECISIONS), "bfloat16"),
        },
        grown,
    )
