"""Exercises of lesson 15, Learn to forget."""

from __future__ import annotations

import math

import torch

from ....model import kernels
from ...exercise import Case, Exercise, normal

# ---------------------------------------------------------------- one recurrence


def recur(q, k, v, a):
    """Fade the state, write, read: q, k (B,H,T,K), v (B,H,T,V), a (B,H,T,1 or K) -> (B,H,T,V)."""
    S, outputs = torch.zeros(*q.shape[:2], q.shape[3], v.shape[3], dtype=q.dtype), []
    for t in range(q.shape[2]):
        S = a[:, :, t, :, None] * S + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append((q[:, :, t, :, None] * S).sum(dim=2))
    return torch.stack(outputs, dim=2)


def _stepped(q, k, v, a, step, read=lambda q, old, S: (q[..., None] * S).sum(dim=2)):
    """`recur` with another step or another read."""
    S, outputs = torch.zeros(*q.shape[:2], q.shape[3], v.shape[3], dtype=q.dtype), []
    for t in range(q.shape[2]):
        new = k[:, :, t, :, None] * v[:, :, t, None, :]
        old, S = S, step(S, new, a[:, :, t])
        outputs.append(read(q[:, :, t], old, S))
    return torch.stack(outputs, dim=2)


def _heads(rng):
    for B, H, T, K, V, of_channels in (
        *((2, 2, 5, 3, 4, True), (1, 1, 1, 2, 3, False), (1, 3, 9, 2, 2, False)),
        (2, 1, 6, 4, 3, True),
    ):
        a = torch.rand(B, H, T, K if of_channels else 1, generator=rng).double()
        q, k, v = (normal(rng, B, H, T, width) for width in (K, K, V))
        yield Case((q, k, v, 0.2 + 0.8 * a))


# ---------------------------------------------------------------- the delta rule


def erase(S, k, beta):
    """Take back a share of what a key reads, and nothing else: S (K,V), k (K,) of norm 1."""
    return S - beta * k[:, None] * (k @ S)[None]


def _keys(rng):
    for K, V, beta in ((3, 4, 0.7), (3, 2, 1.0), (1, 1, 0.5), (5, 3, 0.0)):
        k = normal(rng, K)
        yield Case((normal(rng, K, V), k / k.norm(), beta))


# ---------------------------------------------------------------- from outside


def half_life_of(layer):
    """After how many steps an input of a linear layer (1,T,1) -> (1,T,1) counts half as much."""
    nothing = torch.zeros(1, 8, 1, dtype=torch.float64)
    once = nothing.clone()
    once[0, 0] = 1.0
    felt = (layer(once) - layer(nothing))[0, :, 0]
    kept = (felt[1] / felt[0]).item()
    return math.inf if kept >= 1 - 1e-12 else math.log(0.5) / math.log(kept)


class _Fading:
    """A layer whose every output is a constant more than a fading sum of its inputs."""

    def __init__(self, kept, gain=1.0, constant=0.0):
        self.kept, self.gain, self.constant = kept, gain, constant

    def __call__(self, x):
        log_decay = torch.full(x.shape[2:], math.log(self.kept), dtype=x.dtype)
        return self.constant + self.gain * kernels.running_sum_loop(x, log_decay)[0]

    def __repr__(self):
        return f"a layer that keeps {self.kept} of its state"


def _response(layer):
    x = torch.zeros(1, 8, 1, dtype=torch.float64)
    x[0, 0] = 1.0
    return layer(x)[0, :, 0]


def _kept(layer):
    felt = _response(layer) - layer(torch.zeros(1, 8, 1, dtype=torch.float64))[0, :, 0]
    return (felt[1] / felt[0]).item()


def _or_never(function):
    return lambda layer: math.inf if _kept(layer) >= 1 - 1e-12 else function(layer)


EXERCISES = (
    Exercise(
        recur,
        truth=lambda q, k, v, a: kernels.linear_attention_loop(q, k, v, a.log())[0],
        cases=_heads,
        hints=(
            "A state S of shape (B, H, K, V), zeros at first, and three things to do in each step.",
            "First S fades: a belongs to the rows of S, so it needs one more axis at its end.",
            "Then the key times the value is added, and the query reads: a sum over K.",
        ),
        mistakes={
            "What is new must not fade in the step that writes it.": lambda q, k, v, a: _stepped(
                q, k, v, a, lambda S, new, a: a[..., None] * (S + new)
            ),
            "Nothing fades: a is not used.": lambda q, k, v, a: _stepped(
                q, k, v, a, lambda S, new, a: S + new
            ),
            "A step reads what it has just written, too.": lambda q, k, v, a: _stepped(
                q,
                k,
                v,
                a,
                lambda S, new, a: a[..., None] * S + new,
                lambda q, old, S: (q[..., None] * old).sum(dim=2),
            ),
            "That is a running mean: what is new counts in full, not 1 - a of it.": (
                lambda q, k, v, a: _stepped(
                    q, k, v, a, lambda S, new, a: a[..., None] * S + (1 - a)[..., None] * new
                )
            ),
            "The state is replaced at each step, and remembers nothing.": lambda q, k, v, a: (
                _stepped(q, k, v, a, lambda S, new, a: new)
            ),
            "Queries and keys are swapped.": lambda q, k, v, a: recur(k, q, v, a),
            "All rows of the batch share one state.": lambda q, k, v, a: _stepped(
                q,
                k,
                v,
                a,
                lambda S, new, a: (a[..., None] * S + new).mean(0, keepdim=True) + 0 * new,
            ),
        },
        time_axis=2,
    ),
    Exercise(
        erase,
        cases=_keys,
        hints=(
            "What does the key read? k @ S, a row of V numbers.",
            "Write that row back at the same key, with a minus and times beta: an outer product.",
        ),
        mistakes={
            "All of S has faded; only what the key reads should.": lambda S, k, beta: (
                (1 - beta) * S
            ),
            "That adds what the key reads once more.": lambda S, k, beta: (
                S + beta * k[:, None] * (k @ S)[None]
            ),
            "beta is not used: all of what the key reads is gone.": lambda S, k, beta: (
                S - k[:, None] * (k @ S)[None]
            ),
            "What the key reads must be written back at the key, and not at every row.": (
                lambda S, k, beta: S - beta * (k @ S)[None]
            ),
            "Each row is erased by itself; the key reads a sum of rows.": lambda S, k, beta: (
                S - beta * (k**2)[:, None] * S
            ),
        },
    ),
    Exercise(
        half_life_of,
        cases=lambda rng: (
            Case((layer,))
            for layer in (
                _Fading(0.9, gain=2.0, constant=3.0),
                _Fading(0.5),
                _Fading(1.0),
                _Fading(0.25, gain=-1.0, constant=0.5),
            )
        ),
        hints=(
            "Give it a one and then zeros. What does it say, and what does it say to zeros alone?",
            "The difference is what the one still counts. Each step keeps the same share a of it.",
            "a to the power of which number is one half? And what if a is 1?",
        ),
        mistakes={
            "What it says to zeros has to be taken off first.": _or_never(
                lambda layer: (
                    math.log(0.5)
                    / math.log(abs(_response(layer)[1].item() / _response(layer)[0].item()))
                )
            ),
            "That is the share that one step keeps.": _kept,
            "That many steps leave about a third: 1 / e.": _or_never(
                lambda layer: -1 / math.log(_kept(layer))
            ),
            "The half-life need not be a whole number of steps.": _or_never(
                lambda layer: math.ceil(math.log(0.5) / math.log(_kept(layer)))
            ),
            "That is how many steps' worth the sum holds in the end, 1 / (1 - a).": _or_never(
                lambda layer: 1 / (1 - _kept(layer))
            ),
            "A layer that keeps all never forgets: its half-life is infinite.": lambda layer: (
                0.0 if _kept(layer) >= 1 - 1e-12 else math.log(0.5) / math.log(_kept(layer))
            ),
        },
    ),
)
