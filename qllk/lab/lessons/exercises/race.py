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
    """Who is better by more than luck, from the bits per byte of the same seeds of both."""
    gaps = [theirs - mine for mine, theirs in zip(model, control, strict=True)]
    mean, luck = sum(gaps) / len(gaps), max(gaps) - min(gaps)
    if len(gaps) < 2 or abs(mean) <= luck:  # one seed does not tell how far luck reaches
        return "too close"
    return "ahead" if mean > 0 else "behind"


def void(p, demanded):
    """Whether a test demands fewer bits per byte than any honest model can reach."""
    p = p[p > 0]
    return bool(demanded < -(p * p.log2()).sum())


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


def _void_loop(p, demanded):
    entropy = 0.0
    for chance in p.tolist():
        if chance:
            entropy += chance * math.log2(1 / chance)
    return entropy > demanded


def _said_by(gap, luck, model, control):
    """A verdict by other measures of gap and luck; never from a single seed."""
    if min(len(model), len(control)) < 2 or abs(gap) <= luck:
        return "too close"
    return "ahead" if gap > 0 else "behind"


def _spread(values):
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
        ([2.00, 2.40, 2.70], [2.20, 2.61, 2.89]),  # the seeds differ, the gaps do not
        ([2.00, 2.01, 2.02], [2.00, 2.30, 2.60]),  # the gaps differ
        ([2.00, 2.30], [2.10, 2.20]),  # the best seeds say nothing
        ([2.00, 2.60], [2.70, 2.10]),  # the same seeds must stay together
        ([3.10, 3.20], [2.50, 2.65]),
    ):
        yield Case((model, control))


def _sources(rng):
    uniform, rare = torch.full((256,), 1 / 256, dtype=torch.float64), torch.zeros(256).double()
    rare[[97, 98]] = torch.tensor([0.9, 0.1]).double()
    drawn = torch.rand(256, generator=rng, dtype=torch.float64)
    for p, demands in (
        (uniform, (5.0, 7.9, 8.18)),
        (rare, (0.3, 0.5)),  # 0.47 bits, 0.33 nats
        (drawn / drawn.sum(), (7.6, 7.9)),
    ):
        for demanded in demands:
            yield Case((p, demanded))


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
            "Pair the seeds: the gap of each is control minus model, since fewer bits are better.",
            "How far does luck reach? The largest of these gaps minus the smallest.",
            "With one seed nobody knows how far luck reaches.",
        ),
        mistakes={
            "Fewer bits are better, so the gap has the wrong sign.": lambda m, c: verdict(c, m),
            "One seed has no spread at all, and that is no proof of anything.": lambda m, c: (
                verdict(m * 2, c * 2) if len(m) == 1 else verdict(m, c)
            ),
            "Pair the seeds: what two runs with the same seed share is not luck.": lambda m, c: (
                _said_by(_gap_of_means(m, c), max(_spread(m), _spread(c)), m, c)
            ),
            "Sorting tears the pairs apart.": lambda m, c: verdict(sorted(m), sorted(c)),
            "That compares the luckiest seed of each.": lambda m, c: _said_by(
                min(c) - min(m), 0.0, m, c
            ),
            "Those are only the means; another seed could turn them round.": lambda m, c: _said_by(
                _gap_of_means(m, c), 0.0, m, c
            ),
        },
    ),
    Exercise(
        void,
        truth=_void_loop,
        cases=_sources,
        hints=(
            "The best honest model knows p, and nothing else can be known.",
            "A byte with the probability p costs it -log2(p) bits, and comes with probability p.",
            "The mean of that is the entropy. A byte that never comes adds nothing to it.",
        ),
        mistakes={
            "That entropy is in nats, and the demand in bits.": lambda p, demanded: void(
                p, demanded / math.log(2)
            ),
            "0 times the logarithm of 0 is not a number; leave such bytes out.": lambda p, d: bool(
                d < -(p * p.log2()).sum()
            ),
            "Each byte counts as often as it comes, so weigh it by p.": lambda p, d: bool(
                d < -p[p > 0].log2().mean()
            ),
            "It is the other way round: below the entropy nobody can be.": lambda p, demanded: (
                not void(p, demanded)
            ),
        },
    ),
)
