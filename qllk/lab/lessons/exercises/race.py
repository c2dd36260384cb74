"""Exercises of lesson 11, Race honestly."""

from __future__ import annotations

import math

import torch

from ...exercise import Case, Exercise


def bits(windows):
    """Bits per byte of all windows together, from the loss of each of their bytes in nats."""
    losses = torch.cat(list(windows))
    return losses.mean() / math.log(2)


def unread(ids, blank):
    """Row t is the text as a writer has it after byte t: the bytes that follow are blank."""
    rows = ids.expand(len(ids), -1)  # (T, T)
    return torch.where(torch.ones_like(rows).tril() > 0, rows, blank)


def verdict(model, control):
    """Who is better, from bits per byte of several seeds each: by more than luck, or not."""
    if min(len(model), len(control)) < 2:
        return "too close"  # one seed does not tell how far luck reaches
    gap = sum(control) / len(control) - sum(model) / len(model)
    luck = max(max(model) - min(model), max(control) - min(control))
    if abs(gap) <= luck:
        return "too close"
    return "ahead" if gap > 0 else "behind"


def _bits_loop(windows):
    total, count = 0.0, 0
    for losses in windows:
        for nats in losses.tolist():
            total, count = total + nats / math.log(2), count + 1
    return total / count


def _unread_loop(ids, blank):
    T = len(ids)
    rows = [[int(ids[i]) if i <= t else blank for i in range(T)] for t in range(T)]
    return torch.tensor(rows)


def _said_by(gap, luck, model, control):
    """A verdict by other measures of gap and luck; never from a single seed."""
    if min(len(model), len(control)) < 2 or abs(gap) <= luck:
        return "too close"
    return "ahead" if gap > 0 else "behind"


def spread(values):
    return max(values) - min(values)


def _gap_of_means(model, control):
    return sum(control) / len(control) - sum(model) / len(model)


def ragged(rng):
    for lengths in ((1,), (5, 5), (7, 2, 1), (40, 3)):
        yield Case((tuple(torch.rand(T, generator=rng, dtype=torch.float64) for T in lengths),))


def _texts(rng):
    for T in (1, 3, 8, 11, 24):
        yield Case((torch.randint(97, 123, (T,), generator=rng), 32))


def _seeds_of_two(rng):
    for model, control in (
        ([2.00, 2.02, 2.01], [2.30, 2.31, 2.29]),  # plain
        ([2.00], [2.50]),  # one seed
        ([2.00, 2.40, 2.50], [1.90, 2.60, 2.70]),  # both spreads are wide
        ([2.00, 2.01, 2.02], [2.00, 2.30, 2.60]),  # only one is
        ([3.10, 3.20], [2.50, 2.60, 2.55]),
    ):
        yield Case((model, control))


def _triangle(ids, diagonal):
    T = len(ids)
    return torch.ones(T, T, dtype=torch.bool).tril(diagonal)


EXERCISES = (
    Exercise(
        bits,
        truth=_bits_loop,
        cases=ragged,
        hints=(
            "A nat is 1 / ln 2 bits: about 1.44 of them.",
            "Each byte counts once, so the longer window weighs more.",
        ),
        mistakes={
            "That multiplies by ln 2: a bit is smaller than a nat, "
            "so there are more of them.": lambda w: torch.cat(list(w)).mean() * math.log(2),
            "That is still in nats.": lambda windows: torch.cat(list(windows)).mean(),
            "That is the bits of the whole text, not of one byte.": lambda windows: (
                torch.cat(list(windows)).sum() / math.log(2)
            ),
            "That is a mean of means: "
            "a short last window counts as much as a full one.": lambda x: (
                torch.stack([w.mean() for w in x]).mean() / math.log(2)
            ),
        },
    ),
    Exercise(
        unread,
        truth=_unread_loop,
        cases=_texts,
        hints=(
            "The result has a row and a column for each byte of the text.",
            "What row t may keep is the lower triangle; torch's tril makes one.",
            "torch.where picks from two tensors, place by place; the second may be a number.",
        ),
        mistakes={
            "That hides only later patches: the rest of the patch is the leak.": lambda i, b: (
                torch.where(torch.arange(len(i)) // 8 <= torch.arange(len(i))[:, None] // 8, i, b)
            ),
            "That leaves one byte too many: the very byte that is to be predicted.": lambda i, b: (
                torch.where(_triangle(i, 1), i, b)
            ),
            "That hides the newest byte as well.": lambda ids, blank: torch.where(
                _triangle(ids, -1), ids, blank
            ),
            "What is hidden became zero, not the blank that was asked for.": lambda ids, blank: (
                torch.where(_triangle(ids, 0), ids, 0)
            ),
        },
        time_axis=0,
    ),
    Exercise(
        verdict,
        cases=_seeds_of_two,
        hints=(
            "Fewer bits are better. Take the gap of the means first, and mind its sign.",
            "How far does luck reach? The larger of the two spreads, largest minus smallest.",
            "With one seed on either side nobody knows how far luck reaches.",
        ),
        mistakes={
            "Fewer bits are better, so the gap has the wrong sign.": lambda m, c: verdict(c, m),
            "One seed has no spread at all, and that is no proof of anything.": lambda m, c: (
                _said_by(_gap_of_means(m, c), max(spread(m), spread(c)), m * 2, c * 2)
            ),
            "That compares the luckiest seed of each.": lambda m, c: _said_by(
                min(c) - min(m), 0.0, m, c
            ),
            "The larger of the two spreads counts, not the smaller.": lambda m, c: _said_by(
                _gap_of_means(m, c), min(spread(m), spread(c)), m, c
            ),
            "Those are only the means; another seed could turn them round.": lambda m, c: _said_by(
                _gap_of_means(m, c), 0.0, m, c
            ),
        },
    ),
)
