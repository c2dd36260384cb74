"""Exercises of lesson 12, Choose the parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ....model.positions import Rotary
from ...exercise import Case, Exercise, normal

# ---------------------------------------------------------------- positions


def rotate(q, t):
    """Turn the channels i and i + K/2 of q (T,K) by t / 10000^(2i/K), for positions t (T,)."""
    half = q.shape[1] // 2
    angle = t[:, None] * 10_000.0 ** -(torch.arange(half) / half)
    a, b = q[:, :half], q[:, half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), dim=1)


def _rotated_by_the_library(q, t):
    rows = [
        Rotary(q.shape[1]).rotate(row[None, None, None], int(at))
        for row, at in zip(q, t, strict=True)
    ]
    return torch.cat(rows, dim=2)[0, 0]


def _turned(q, angle, sign=1.0):
    a, b = q.chunk(2, dim=1)
    cos, sin = angle.cos(), sign * angle.sin()
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=1)


def _frequencies(K):
    return 10_000.0 ** -(torch.arange(K // 2) / (K // 2))


def _in_pairs(q, t):
    angle = t[:, None] * _frequencies(q.shape[1])
    a, b = q[:, ::2], q[:, 1::2]
    turned = a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()
    return torch.stack(turned, dim=2).flatten(1)


def _placed(rng):
    for T, K, first in ((5, 6, 3), (1, 2, 0), (4, 4, 100), (3, 8, 1)):
        yield Case((normal(rng, T, K), torch.arange(first, first + T).double()))


def shift_error(score):
    """How far score(i, j) is from depending on i - j alone: the largest change when both move.

    `score` is called with positions i and j from 0 to 7.
    """
    moves = [score(i + 1, j + 1) - score(i, j) for i in range(7) for j in range(7)]
    return max(map(abs, moves))


class _Score:
    """A score of a query at i and a key at j, for one way to tell positions."""

    def __init__(self, name, function):
        self.name, self.function = name, function

    def __call__(self, i, j):
        return float(self.function(i, j))

    def __repr__(self):
        return self.name


SCORES = (
    _Score("by both places", lambda i, j: 0.3 * i - 0.2 * j - 0.02 * i * i + 0.7 * (j == 6)),
    _Score("by the place of the key", lambda i, j: 0.5 * j - (2.0 if j == 6 else 0.0)),
    _Score("by distance", lambda i, j: 1.5 - 0.25 * abs(i - j)),
    _Score("by the place of the query", lambda i, j: -0.3 * i),
    _Score("by distance, but not from the first", lambda i, j: (i - j) * (3.0 if i == 0 else 1.0)),
)


def _errors(pairs, of=max, size=abs):
    """The largest change over some pairs of pairs of positions."""
    return lambda score: of([size(score(*there) - score(*here)) for here, there in pairs])


_ALL = [((i, j), (i + 1, j + 1)) for i in range(7) for j in range(7)]


# ---------------------------------------------------------------- norms and MLPs


def rms_norm(x, weight, eps):
    """Scale each vector of x (B,T,D) to root mean square 1, then by weight (D,)."""
    size = (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return x / size * weight


def _vectors(rng):
    for B, T, D in ((2, 3, 5), (1, 1, 1), (3, 2, 4)):
        yield Case((2.0 + 3.0 * normal(rng, B, T, D), normal(rng, D), 0.1))
    yield Case((torch.zeros(1, 2, 3).double(), torch.ones(3).double(), 1e-6))


def swiglu(x, gate, up, down):
    """Gate one projection by the other: x (B,T,D), gate and up (F,D), down (D,F) -> (B,T,D)."""
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def _layers(rng):
    for B, T, D, hidden in ((2, 3, 4, 5), (1, 1, 2, 3), (3, 2, 3, 4)):
        shapes = ((B, T, D), (hidden, D), (hidden, D), (D, hidden))
        yield Case(tuple(normal(rng, *shape) for shape in shapes))


EXERCISES = (
    Exercise(
        rotate,
        truth=_rotated_by_the_library,
        cases=_placed,
        hints=(
            "Two channels a, b are a point. Turned, it is a cos - b sin, a sin + b cos.",
            "The angles are a table of T rows and K/2 columns: t[:, None] times the frequencies.",
            "The frequencies are 10000 ** -(i / (K/2)) for i = 0 … K/2 - 1.",
        ),
        mistakes={
            "It turns the other way.": lambda q, t: _turned(
                q, t[:, None] * _frequencies(q.shape[1]), -1.0
            ),
            "All channels turn at the same speed; each pair has its own.": lambda q, t: _turned(
                q, t[:, None].expand(-1, q.shape[1] // 2)
            ),
            "The pairs are i and i + K/2, not neighbours.": _in_pairs,
            "The frequencies fall too slowly: the exponent runs from 0 to almost 1.": lambda q, t: (
                _turned(q, t[:, None] * 10_000.0 ** -(torch.arange(q.shape[1] // 2) / q.shape[1]))
            ),
            "The positions start at t[0], not at 0.": lambda q, t: _turned(
                q, torch.arange(len(q))[:, None].double() * _frequencies(q.shape[1])
            ),
            "The frequencies rise; they should fall.": lambda q, t: _turned(
                q, t[:, None] * _frequencies(q.shape[1]).flip(0)
            ),
        },
        within=1e-7,
    ),
    Exercise(
        rms_norm,
        truth=lambda x, weight, eps: F.rms_norm(x, weight.shape, weight, eps),
        cases=_vectors,
        hints=(
            "Square, take the mean over the last axis, add eps, take the root.",
            "keepdim=True keeps the axis, so that x can be divided by the result.",
        ),
        mistakes={
            "That takes off the mean as well: it is a LayerNorm.": lambda x, weight, eps: (
                F.layer_norm(x, weight.shape, weight, None, eps)
            ),
            "It needs the mean of the squares, not their sum.": lambda x, weight, eps: (
                x / (x.square().sum(-1, keepdim=True) + eps).sqrt() * weight
            ),
            "eps belongs under the root.": lambda x, weight, eps: (
                x / (x.square().mean(-1, keepdim=True).sqrt() + eps) * weight
            ),
            "The mean is over the channels of one position, not over all positions.": (
                lambda x, weight, eps: x / (x.square().mean() + eps).sqrt() * weight
            ),
            "The weight is not used.": lambda x, weight, eps: F.rms_norm(
                x, weight.shape, None, eps
            ),
            "That divides by the mean square; its root is missing.": lambda x, weight, eps: (
                x / (x.square().mean(-1, keepdim=True) + eps) * weight
            ),
        },
    ),
    Exercise(
        swiglu,
        cases=_layers,
        hints=(
            "There are two projections to F numbers. One of them passes through F.silu.",
            "Their product, number by number, goes through the last matrix.",
        ),
        mistakes={
            "The gate is the one that passes through silu, not the other.": (
                lambda x, gate, up, down: swiglu(x, up, gate, down)
            ),
            "silu is x * sigmoid(x); that is the sigmoid alone.": lambda x, gate, up, down: (
                ((x @ gate.T).sigmoid() * (x @ up.T)) @ down.T
            ),
            "The two branches are multiplied, not added.": lambda x, gate, up, down: (
                (F.silu(x @ gate.T) + x @ up.T) @ down.T
            ),
            "There is no second branch: it is an MLP with silu.": lambda x, gate, up, down: (
                F.silu(x @ gate.T) @ down.T
            ),
            "silu comes before the product, not after it.": lambda x, gate, up, down: (
                F.silu((x @ gate.T) * (x @ up.T)) @ down.T
            ),
        },
    ),
    Exercise(
        shift_error,
        cases=lambda rng: (Case((score,)) for score in SCORES),
        hints=(
            "If only the distance counts, score(i + 1, j + 1) equals score(i, j), everywhere.",
            "Try all i and j from 0 to 6, and keep the largest difference, whatever its sign.",
        ),
        mistakes={
            "Both positions have to move; that moves the query alone.": _errors(
                [((i, j), (i + 1, j)) for i in range(7) for j in range(7)]
            ),
            "Both positions have to move; that moves the key alone.": _errors(
                [((i, j), (i, j + 1)) for i in range(7) for j in range(7)]
            ),
            "One pair of positions is not enough.": _errors(_ALL[:1]),
            "A fall counts as much as a rise.": _errors(_ALL, size=float),
            "The largest change is asked for, not the mean.": _errors(
                _ALL, of=lambda changes: sum(changes) / len(changes)
            ),
            "The largest change is asked for, not the sum.": _errors(_ALL, of=sum),
        },
    ),
)
