"""Exercises of lesson 01, Pay for attention."""

from __future__ import annotations

import math

import torch

from ...exercise import Case, Exercise, normal, shaped


def mask(T, window):
    """Which of T keys each of T queries may see: its own and those before, `window` at most."""
    place = torch.arange(T)
    age = place[:, None] - place  # how long ago the key was, seen from the query
    return (age >= 0) & (age < window)


def _mask_loop(T, window):
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


def _merge_loop(o1, l1, o2, l2):
    """The definition of `merge`: each piece counts by the exponentials it has summed."""
    outputs, totals = torch.zeros_like(o1), torch.zeros_like(l1)
    for b in range(len(l1)):
        most = max(l1[b].item(), l2[b].item())
        first, second = math.exp(l1[b].item() - most), math.exp(l2[b].item() - most)
        outputs[b] = (first * o1[b] + second * o2[b]) / (first + second)
        totals[b] = most + math.log(first + second)
    return outputs, totals


def _halves(rng):
    for B, V, level in ((1, 1, 0.0), (2, 3, 0.0), (5, 4, -3.0), (3, 2, 800.0)):
        o1, o2 = normal(rng, B, V), normal(rng, B, V)
        yield Case((o1, level + normal(rng, B), o2, level + normal(rng, B)))


def _scaled_scores(q, k):
    return q @ k.transpose(1, 2) / q.shape[-1] ** 0.5


EXERCISES = (
    Exercise(
        mask,
        truth=_mask_loop,
        cases=shaped("t, window", (1, 1), (5, 2), (7, 7), (6, 9), (9, 1)),
        hints=(
            "Number the places: torch.arange(T). A column of them minus a row of them is a table.",
            "The table says how long ago each key was. Which ages are allowed?",
            "Its own key has age 0, so with a window of 1 only age 0 is left.",
        ),
        mistakes={
            "There is no window: the oldest keys must drop out of sight.": lambda T, window: (
                torch.ones(T, T).tril().bool()
            ),
            "The window is one key too wide; the query's own key counts, too.": lambda T, window: (
                mask(T, window + 1)
            ),
            "A query must see its own key.": lambda T, window: (
                mask(T, window + 1) & ~torch.eye(T, dtype=torch.bool)
            ),
            "That shows the future: rows are queries, columns are keys.": lambda T, window: (
                mask(T, window).T
            ),
        },
    ),
    Exercise(
        weights,
        truth=weights_loop,
        cases=shaped("B T K, B T K", (1, 1, 3), (2, 5, 3), (3, 11, 1), (2, 70, 5)),
        hints=(
            "Three steps: all scores as one matrix product, the mask, the softmax.",
            "What must a score be before the softmax, so that its weight is zero after it?",
            "Row i holds the weights of query i, so each row must sum to one.",
        ),
        mistakes={
            "There is no mask.": lambda q, k: _scaled_scores(q, k).softmax(dim=-1),
            "The mask came after the softmax, so the future still took its share.": lambda q, k: (
                _scaled_scores(q, k).softmax(dim=-1).tril()
            ),
            "The mask shows one place too many.": lambda q, k: (
                _scaled_scores(q, k)
                .masked_fill(torch.ones(q.shape[1], q.shape[1]).triu(2).bool(), -torch.inf)
                .softmax(dim=-1)
            ),
            "A masked score of 0 is not a weight of 0: its exponential is 1.": lambda q, k: (
                _scaled_scores(q, k).tril().softmax(dim=-1)
            ),
            "The scores were not divided by the root of K.": lambda q, k: weights(
                q * q.shape[-1] ** 0.5, k
            ),
            "Queries and keys are swapped.": lambda q, k: weights(k, q),
        },
        time_axis=1,
    ),
    Exercise(
        merge,
        truth=_merge_loop,
        cases=_halves,
        hints=(
            "Write the whole average as one fraction. What does each piece add above and below?",
            "A piece's part above the line is e**l times o, and below the line e**l.",
            "Got nan? Take the larger l away from both first: it cancels. torch.logaddexp and "
            "torch.sigmoid do so by themselves.",
        ),
        mistakes={
            "The pieces do not count alike: "
            "the one with the larger sum counts more.": lambda o, s, x, y: (
                (o + x) / 2,
                torch.logaddexp(s, y),
            ),
            "The shares are swapped.": lambda o1, l1, o2, l2: merge(o2, l1, o1, l2),
            "The sums add up, their logarithms do not.": lambda o1, l1, o2, l2: (
                merge(o1, l1, o2, l2)[0],
                l1 + l2,
            ),
            "The average of the whole is divided by both sums together.": lambda o1, l1, o2, l2: (
                o1 + o2,
                torch.logaddexp(l1, l2),
            ),
        },
    ),
)
