"""Exercises of lesson 14, Look through a window."""

from __future__ import annotations

import torch

from ...exercise import Case, Exercise, normal

# ---------------------------------------------------------------- what a cache keeps


def kept(t, window, sinks):
    """Which of t steps a cache must keep for the next query: (t,) bool.

    That query sees itself and the window - 1 steps before it, and the first `sinks` steps.
    """
    steps = torch.arange(t)
    return (steps >= t - window + 1) | (steps < sinks)


def _sizes(rng):
    for sizes in ((9, 4, 2), (5, 1, 1), (3, 8, 2), (6, 3, 0), (1, 1, 0), (7, 5, 4)):
        yield Case(sizes)


# ---------------------------------------------------------------- latents


def absorb(q, to_k):
    """Queries for latents: q (H,K), to_k (H,K,L) -> (H,L), whose products with a latent are those
    of q with the key that to_k makes of it.
    """
    return torch.einsum("hk,hkl->hl", q, to_k)


def _projections(rng):
    for H, K, L in ((2, 3, 4), (1, 1, 1), (3, 2, 2), (2, 4, 4)):
        yield Case((normal(rng, H, K), normal(rng, H, K, L)))


# ---------------------------------------------------------------- from outside


def window_of(layer):
    """How many steps back the last output of a layer (1,12,1) -> (1,12,1) reaches, its own step
    included.
    """
    x = torch.zeros(1, 12, 1, dtype=torch.float64)
    usual = layer(x)[0, -1]
    for t in range(12):
        changed = x.clone()
        changed[0, t] = 1.0
        if not torch.equal(layer(changed)[0, -1], usual):
            return 12 - t
    return 0


class _Looking:
    """A layer whose output at t is a weighted sum of the inputs `ages` steps before it."""

    def __init__(self, *ages, more=0.0):
        self.ages, self.more = ages, more

    def __call__(self, x):
        y = torch.full_like(x, self.more)
        for age in self.ages:
            y[:, age:] += (1 + age) * x[:, : x.shape[1] - age]
        return y

    def __repr__(self):
        return f"a layer that looks {self.ages} steps back"


def _changes(layer):
    """Which inputs change the last output: (12,) bool."""
    x = torch.zeros(1, 12, 1, dtype=torch.float64)
    usual, seen = layer(x)[0, -1], []
    for t in range(12):
        changed = x.clone()
        changed[0, t] = 1.0
        seen.append(not torch.equal(layer(changed)[0, -1], usual))
    return seen


def _without_a_gap(layer):
    seen = _changes(layer)[::-1]
    return seen.index(False) if False in seen else 12


EXERCISES = (
    Exercise(
        kept,
        cases=_sizes,
        hints=(
            "The next query stands at step t. How far back does its window reach, if it has "
            "`window` keys with its own?",
            "Its own key is not in the cache yet: window - 1 steps are enough.",
        ),
        mistakes={
            "That keeps one step too many: the next query brings its own key.": (
                lambda t, window, sinks: (torch.arange(t) >= t - window) | (torch.arange(t) < sinks)
            ),
            "The sinks are gone; they stay however long the text is.": lambda t, window, sinks: (
                torch.arange(t) >= t - window + 1
            ),
            "The sinks come on top of the window, not out of it.": lambda t, window, sinks: (
                (torch.arange(t) >= t - window + 1 + sinks) | (torch.arange(t) < sinks)
            ),
            "Those are the steps that may go.": lambda t, window, sinks: ~kept(t, window, sinks),
            "Only the sinks are left; the window is missing.": lambda t, window, sinks: (
                torch.arange(t) < sinks
            ),
            "The newest steps stay, not the oldest.": lambda t, window, sinks: (
                torch.arange(t) < window - 1 + sinks
            ),
        },
    ),
    Exercise(
        absorb,
        cases=_projections,
        hints=(
            "q . (W c) is a sum over K and L. In which order can it be summed?",
            "(q W) . c: for each head, a row of K numbers times a matrix of K rows.",
        ),
        mistakes={
            "Each head has a query of its own; they must not be added up.": lambda q, to_k: (
                torch.einsum("hk,hkl->l", q, to_k).expand(len(q), -1)
            ),
            "Every head has met every query; head h needs its own alone.": lambda q, to_k: (
                torch.einsum("gk,hkl->hl", q, to_k)
            ),
            "The query is not used.": lambda q, to_k: to_k.sum(dim=1),
            "Those are averages over K; the sum is needed.": lambda q, to_k: (
                absorb(q, to_k) / q.shape[1]
            ),
            "A softmax has no place here; it comes after the scores.": lambda q, to_k: absorb(
                q, to_k
            ).softmax(dim=-1),
        },
    ),
    Exercise(
        window_of,
        cases=lambda rng: (
            Case((layer,))
            for layer in (
                _Looking(0, 1, 4, more=2.0),
                _Looking(0),
                _Looking(2, 3),
                _Looking(*range(12)),
                _Looking(0, 6),
            )
        ),
        hints=(
            "Change one input at a time. Which of them change the last output?",
            "The oldest one that does decides, even if some after it do not.",
        ),
        mistakes={
            "That counts the steps it reads; how far back does it reach?": lambda layer: sum(
                _changes(layer)
            ),
            "Its own step counts, too.": lambda layer: window_of(layer) - 1,
            "It may skip steps and still look further back.": _without_a_gap,
            "That is the step itself, not how far back it lies.": lambda layer: _changes(
                layer
            ).index(True),
            "It looks at the newest input alone.": lambda layer: int(_changes(layer)[-1]),
        },
    ),
)
