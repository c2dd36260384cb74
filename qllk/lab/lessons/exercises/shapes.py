"""Exercises of lesson 16, Give one block three shapes."""

from __future__ import annotations

import torch

from ....model import kernels
from ...exercise import Case, Exercise, normal

# ---------------------------------------------------------------- attention to another text


def cross(q, k, v, text):
    """Average the source's values for each query: q (B,H,T,K), k, v (B,H,N,K), text (B,N) bool."""
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~text[:, None, None], float("-inf"))
    return scores.softmax(dim=-1) @ v


def _cross_loop(q, k, v, text):
    return kernels.softmax_attention_loop(
        q, k, v, text[:, None, None].expand(-1, 1, q.shape[2], -1)
    )


def _scores(q, k):
    return q @ k.transpose(2, 3) * q.shape[-1] ** -0.5


def _causally(q, k, v, text):
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    visible = seen & text[:, None, None]
    return _scores(q, k).masked_fill(~visible, -1e9).softmax(dim=-1) @ v


def _sources(rng):
    for B, H, T, N, K in ((2, 2, 3, 5, 4), (1, 1, 1, 1, 3), (3, 1, 4, 2, 1), (2, 3, 5, 7, 2)):
        text = torch.arange(N) < torch.randint(1, N + 1, (B, 1), generator=rng)
        yield Case((*(normal(rng, B, H, n, K) for n in (T, N, N)), text))


# ---------------------------------------------------------------- what is hidden


def hide(ids, chosen, fate, other, mask):
    """Hide the chosen ids: 80 % become the mask, 10 % another id, 10 % stay. All are (B,T)."""
    hidden = torch.where(fate < 0.8, mask, torch.where(fate < 0.9, other, ids))
    return torch.where(chosen, hidden, ids)


def _fates(rng):
    for B, T in ((2, 40), (1, 1), (3, 25)):
        ids, other = (torch.randint(256, (B, T), generator=rng) for _ in range(2))
        chosen = torch.rand(B, T, generator=rng) < 0.6
        yield Case((ids, chosen, torch.rand(B, T, generator=rng), other, 256))


def spans(words, lost):
    """The source of T5: each run of lost words becomes one sentinel, <0>, <1>, …: a text."""
    source, found = [], 0
    for t, (word, gone) in enumerate(zip(words, lost, strict=True)):
        if not gone:
            source.append(word)
        elif t == 0 or not lost[t - 1]:
            source.append(f"<{found}>")
            found += 1
    return " ".join(source)


def _each_by_itself(words, lost):
    marks = (f"<{n}>" for n in range(len(words)))
    return " ".join(next(marks) if gone else word for word, gone in zip(words, lost, strict=True))


def _numbered(words, lost, number, keep=False):
    source, found = [], 0
    for t, (word, gone) in enumerate(zip(words, lost, strict=True)):
        if gone and (t == 0 or not lost[t - 1]):
            source.append(f"<{number(found)}>")
            found += 1
        if keep or not gone:
            source.append(word)
    return " ".join(source)


_WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"),
    *("and", "then", "it", "sleeps", "until", "noon"),
)


def _gaps(rng):
    for size, share in ((9, 0.5), (1, 1.0), (15, 0.6), (4, 0.0), (6, 1.0)):
        yield Case((_WORDS[:size], (torch.rand(size, generator=rng) < share).tolist()))


# ---------------------------------------------------------------- from outside


def source_seen(model, source, ids):
    """Which positions of the source can change what a model says: (N,) bool."""
    usual, seen = model(source, ids), []
    for t in range(source.shape[1]):
        changed = source.clone()
        changed[:, t] = (changed[:, t] + 1) % 8
        seen.append(not torch.equal(model(changed, ids), usual))
    return torch.tensor(seen)


class _Reader:
    """A stand-in for an encoder-decoder over eight ids: `reads` makes a number of the source, and
    `late` one that only the last logits depend on.
    """

    def __init__(self, name, reads, late=lambda source: 0 * source[:, 0]):
        self.name, self.reads, self.late = name, reads, late

    def __call__(self, source, ids):
        rng = torch.Generator().manual_seed(3)
        table = torch.randn(8, 8, generator=rng, dtype=torch.float64)
        logits = table[ids].cumsum(dim=1)  # (B,T,8)
        logits += self.reads(source).double()[:, None, None]
        logits[:, -1] += self.late(source).double()[:, None]
        return logits

    def __repr__(self):
        return self.name


READERS = (
    _Reader("some", lambda source: source[:, 1] + 8 * source[:, 3]),
    _Reader("nothing", lambda source: 0 * source[:, 0]),
    _Reader("all", lambda source: (source * (1 + torch.arange(source.shape[1]))).sum(dim=1)),
    _Reader("its length", lambda source: torch.full((len(source),), source.shape[1])),
    _Reader("two ids, one of them late", lambda source: source[:, 0], lambda source: source[:, -1]),
)


def _readers(rng):
    for reader in READERS:
        source, ids = (torch.randint(8, (2, size), generator=rng) for size in (5, 4))
        yield Case((reader, source, ids))


def _seen_by(differ):
    """Position by position, from the model's answers with a changed id and without."""

    def seen(model, source, ids):
        found = []
        for t in range(source.shape[1]):
            changed = source.clone()
            changed[:, t] = (changed[:, t] + 1) % 8
            found.append(differ(model, changed, source, ids, t))
        return torch.tensor(found)

    return seen


def _changed(model, source, other, ids):
    return not torch.equal(model(source, ids), model(other, ids))


EXERCISES = (
    Exercise(
        cross,
        truth=_cross_loop,
        cases=_sources,
        hints=(
            "It is attention as in lesson 01, except for where the keys and the values come from.",
            "There is no future in the source: every query may see all of it, but its padding.",
            "`text[:, None, None]` has the shape (B, 1, 1, N), and fits the scores.",
        ),
        mistakes={
            "The padding takes part: set its scores to -inf before the softmax.": (
                lambda q, k, v, text: _scores(q, k).softmax(dim=-1) @ v
            ),
            "The source is complete when the first id is written; it has no future.": _causally,
            "The padding lost its share after the softmax, so the rest adds up to less than one.": (
                lambda q, k, v, t: (_scores(q, k).softmax(dim=-1) * t[:, None, None]) @ v
            ),
            "The scores were not divided by the root of K.": lambda q, k, v, t: (
                (q @ k.transpose(2, 3)).masked_fill(~t[:, None, None], float("-inf")).softmax(-1)
                @ v
            ),
            "The weights of each query add up to one, over the source, not over the queries.": (
                lambda q, k, v, t: (
                    _scores(q, k).masked_fill(~t[:, None, None], -1e9).softmax(dim=-2) @ v
                )
            ),
            "The mask is upside down: text is True where there is no padding.": (
                lambda q, k, v, text: (
                    _scores(q, k).masked_fill(text[:, None, None], -1e9).softmax(dim=-1) @ v
                )
            ),
        },
    ),
    Exercise(
        hide,
        cases=_fates,
        hints=(
            "`torch.where(condition, one, other)` takes each number from one of two.",
            "First decide what would become of every id; then keep that only where it is chosen.",
        ),
        mistakes={
            "All chosen ids became the mask; a tenth of them should be another id, a tenth stay.": (
                lambda ids, chosen, fate, other, mask: torch.where(chosen, mask, ids)
            ),
            "No chosen id stays as it is.": lambda ids, chosen, fate, other, mask: torch.where(
                chosen, torch.where(fate < 0.8, mask, other), ids
            ),
            "The ids that are not chosen must stay.": lambda ids, chosen, fate, other, mask: (
                torch.where(fate < 0.8, mask, torch.where(fate < 0.9, other, ids))
            ),
            "The shares are in the wrong order: 80 % are the mask.": (
                lambda ids, chosen, fate, other, mask: torch.where(
                    chosen, torch.where(fate < 0.1, mask, torch.where(fate < 0.2, other, ids)), ids
                )
            ),
            "Those are the ids that are not chosen.": lambda ids, chosen, fate, other, mask: hide(
                ids, ~chosen, fate, other, mask
            ),
        },
    ),
    Exercise(
        spans,
        cases=_gaps,
        hints=(
            "Go through the words. What do you write for one if the word before it is lost, too?",
            "Only the first word of a span writes something: its sentinel. Count the spans.",
        ),
        mistakes={
            "A span has one sentinel, however long it is.": _each_by_itself,
            "The first sentinel is <0>.": lambda words, lost: _numbered(
                words, lost, lambda n: n + 1
            ),
            "Each span needs a sentinel of its own.": lambda words, lost: _numbered(
                words, lost, lambda n: 0
            ),
            "The lost words are still there.": lambda words, lost: _numbered(
                words, lost, lambda n: n, keep=True
            ),
            "The spans are gone without a sentinel.": lambda words, lost: " ".join(
                word for word, gone in zip(words, lost, strict=True) if not gone
            ),
            "Those are the lost words; the source keeps the others.": lambda words, lost: spans(
                words, [not gone for gone in lost]
            ),
        },
    ),
    Exercise(
        source_seen,
        cases=_readers,
        hints=(
            "Change one id of the source and ask again. What must change, if the model reads it?",
            "Do so for each position, each time from the unchanged source; compare all logits.",
        ),
        mistakes={
            "The source was not changed.": _seen_by(
                lambda model, changed, source, ids, t: _changed(model, source, source, ids)
            ),
            "Change the source; the ids that were written already are another input.": _seen_by(
                lambda model, changed, source, ids, t: (
                    not torch.equal(model(source, ids), model(source, (ids + 1) % 8))
                )
            ),
            "Begin again from the unchanged source for each position.": _seen_by(
                lambda model, changed, source, ids, t: _changed(
                    model,
                    torch.cat((changed[:, : t + 1] * 0 + 7, source[:, t + 1 :]), 1),
                    source,
                    ids,
                )
            ),
            "The answer may change at any position, not only at the first.": _seen_by(
                lambda model, changed, source, ids, t: (
                    not torch.equal(model(changed, ids)[:, 0], model(source, ids)[:, 0])
                )
            ),
            "That is where the source does not matter.": lambda model, source, ids: (
                ~source_seen(model, source, ids)
            ),
        },
    ),
)
