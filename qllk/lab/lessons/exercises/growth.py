"""Exercises of lesson 04, Watch the state grow."""

from __future__ import annotations

import math

import torch

from ....model import kernels
from ...exercise import Case, Exercise, normal, shaped


def half_life(steps):
    """The factor that, applied once a step, leaves one half after `steps` steps."""
    return 0.5 ** (1 / steps)


def fading_sum(x, a):
    """Fade the sum by a, then add what is new: x (B,T,D), a (D,) -> sums (B,T,D)."""
    S, sums = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        S = a * S + x[:, t]
        sums.append(S)
    return torch.stack(sums, dim=1)


def stall(bits, step):
    """Where a sum stops: a float of `bits` significant bits, adding a power of two each time."""
    return step * 2**bits


def stall_loop(bits, step):
    """The definition of `stall`: add until nothing changes any more."""
    total = 0.0
    while (larger := _rounded(total + step, bits)) != total:
        total = larger
    return total


def _rounded(x, bits):
    """The nearest number of `bits` significant bits; in the middle of two, the even one."""
    share, exponent = math.frexp(x)
    return math.ldexp(round(math.ldexp(share, bits)), exponent - bits)


def _stepped(x, rule):
    """All states of S = rule(S, x_t), one step at a time."""
    S, sums = torch.zeros_like(x[:, 0]), []
    for new in x.unbind(1):
        S = rule(S, new)
        sums.append(S)
    return torch.stack(sums, dim=1)


def _by_powers(x, a):
    """A matrix of powers for each channel: right, and as large as the square of the length."""
    steps = torch.arange(x.shape[1])
    ages = (steps[:, None] - steps).clamp(min=0)[..., None]  # (T,T,1)
    weights = torch.where((steps[:, None] >= steps)[..., None], a**ages, 0.0)
    return torch.einsum("tsd,bsd->btd", weights, x)


def by_quotients(x, a, least=0.0):
    """Divide by the power, add up, multiply by the power: right until the powers run out."""
    powers = (a ** torch.arange(x.shape[1])[:, None]).clamp(min=least)  # (T,D)
    return powers * (x / powers).cumsum(dim=1)


def _faded(rng):
    for B, T, D in ((2, 5, 3), (1, 1, 3), (3, 11, 1)):
        yield Case((normal(rng, B, T, D), 0.5 + 0.5 * torch.rand(D, generator=rng).double()))
    # The 104th power of a thousandth is the first whose inverse is too large for float64.
    yield Case((normal(rng, 1, 106, 2).abs() + 1, torch.tensor([1e-3, 0.9]).double()), long=True)


EXERCISES = (
    Exercise(
        half_life,
        cases=shaped("steps", (1,), (2,), (5,), (1000,)),
        hints=(
            "Applied `steps` times, the factor becomes its own power.",
            "Which number, to the power of `steps`, is one half?",
        ),
        mistakes={
            "That halves at each step, for any half-life.": lambda steps: 0.5,
            "Applied once a step, "
            "that leaves about 1/e after `steps` steps, not one half.": lambda s: 1 - 1 / s,
            "That leaves 1/e after `steps` steps; it should leave one half.": lambda steps: (
                math.exp(-1 / steps)
            ),
            "That halves at each step: it is what is left after all the steps.": lambda steps: (
                0.5**steps
            ),
            "That is the logarithm of the factor.": lambda steps: -math.log(2) / steps,
            "That grows: it doubles in `steps` steps.": lambda steps: 2 ** (1 / steps),
        },
    ),
    Exercise(
        fading_sum,
        truth=lambda x, a: kernels.running_sum_loop(x, log_decay=a.log())[0],
        cases=_faded,
        hints=(
            "Two things happen in a step, one after the other. Which of them comes first?",
            "The newest term is not faded yet; the one before it is faded once.",
            "A loop that carries one state of shape (B, D) is enough.",
        ),
        mistakes={
            "The newest term is faded in the step that adds it.": lambda x, a: _stepped(
                x, lambda S, new: a * (S + new)
            ),
            "Only the new term is faded; the sum before it never fades.": lambda x, a: _stepped(
                x, lambda S, new: S + a * new
            ),
            "Nothing fades: the factor is not used.": lambda x, a: x.cumsum(dim=1),
            "That is a running mean: the new term is scaled down.": lambda x, a: _stepped(
                x, lambda S, new: a * S + (1 - a) * new
            ),
            "The power counts from the first step; it must be the age of the term.": lambda x, a: (
                a ** torch.arange(x.shape[1])[:, None] * x
            ).cumsum(dim=1),
            "The sum runs over the batch, not over time.": lambda x, a: fading_sum(
                x.transpose(0, 1), a
            ).transpose(0, 1),
            "The powers you divide by get too small; "
            "held above 0, they stop fading the sum.": lambda x, a: by_quotients(x, a, least=1e-12),
            "The sum runs from the end to the beginning.": lambda x, a: fading_sum(
                x.flip(1), a
            ).flip(1),
            "Every pair of steps has a weight of its own.": _by_powers,
        },
        time_axis=1,
        steepest=1.3,
        sized=lambda T: (
            torch.zeros(1, T, 4, dtype=torch.float64),
            torch.full((4,), 0.9, dtype=torch.float64),
        ),
    ),
    Exercise(
        stall,
        truth=stall_loop,
        cases=shaped("bits, step", (8, 1.0), (3, 1.0), (11, 1.0), (8, 4.0), (5, 0.25)),
        hints=(
            "With `bits` binary digits, how far can you count before a digit is missing?",
            "Above that, neighbours are two apart. Half of a gap rounds to the even neighbour.",
            "Scaling everything by a power of two changes no digit.",
        ),
        mistakes={
            "Neighbours there are still one step apart, so the sum keeps growing.": lambda b, s: (
                s * 2 ** (b - 1)
            ),
            "One more step still fits: "
            "the next power of two has but one digit that is not 0.": lambda b, s: s * (2**b - 1),
            "That is right for steps of 1; larger ones are felt for longer.": lambda bits, step: (
                2**bits
            ),
            "Larger steps carry the sum further, not less far.": lambda bits, step: 2**bits / step,
            "It stops sooner: the first digit, "
            "which is never 0, is one of the bits.": lambda b, s: s * 2 ** (b + 1),
        },
    ),
)
