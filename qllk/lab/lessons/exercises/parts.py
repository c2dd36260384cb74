"""Exercises of lesson 12, Choose the parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ....model.positions import Learned, Relative, Rotary, Sinusoidal
from ...exercise import Case, Exercise, normal

# ---------------------------------------------------------------- positions


def rotate(x, t0):
    """Rotate channels i and i + K/2 together, by an angle that grows with the place: (B,H,T,K)."""
    T, half = x.shape[2], x.shape[3] // 2
    frequency = 10_000.0 ** -(torch.arange(half).double() / half)
    angle = torch.arange(t0, t0 + T)[:, None] * frequency  # (T, K/2)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), dim=-1)


def _rotate_loop(x, t0):
    y, K = torch.empty_like(x), x.shape[3]
    for t in range(x.shape[2]):
        for i in range(K // 2):
            angle = (t0 + t) * 10_000.0 ** (-2 * i / K)
            a, b = x[:, :, t, i], x[:, :, t, i + K // 2]
            y[:, :, t, i] = a * math.cos(angle) - b * math.sin(angle)
            y[:, :, t, i + K // 2] = a * math.sin(angle) + b * math.cos(angle)
    return y


def _neighbours(x, t0):
    """Channels 2 i and 2 i + 1 are rotated together."""
    apart = torch.cat((x[..., ::2], x[..., 1::2]), dim=-1)
    return torch.stack(rotate(apart, t0).chunk(2, dim=-1), dim=-1).flatten(start_dim=-2)


def _equally_fast(x, t0):
    angle = torch.arange(t0, t0 + x.shape[2]).double()[:, None]
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), dim=-1)


def _each_at_once(x, t0):
    return torch.cat([rotate(one, t0) for one in x.split(1, dim=2)], dim=2)


def _heads(rng):
    for (B, H, T, K), t0 in (((2, 3, 5, 4), 0), ((1, 1, 1, 2), 7), ((2, 1, 4, 6), 3)):
        yield Case((normal(rng, B, H, T, K), t0))
    yield Case((normal(rng, 1, 2, 3, 8), 1000))


@dataclass(frozen=True)
class Score:
    """The score of one query at place t with one key at place s, under some positions."""

    kind: str
    seed: int = 0

    def __call__(self, t: int, s: int) -> float:
        rng = torch.Generator().manual_seed(self.seed)
        q, k = normal(rng, 2, 1, 1, 8)
        return _KINDS[self.kind](q, k, t, s, rng)


def score(part, q, k, t, s):
    """The score of a query at place t with a key at place s, if `part` says where they are.

    Shapes   q, k (1,1,K) -> a number
    """
    q, k = (part.rotate(part.add(x, at)[:, None], at) for x, at in ((q, t), (k, s)))
    bias = part.bias(1, 1, max(t, s) + 1)
    return float((q * k).sum() + (0.0 if bias is None else bias[0, 0, s]))


def _with_table(part, rng):
    part.table.weight.data = normal(rng, *part.table.weight.shape)
    return part


def _late(q, k, t, s, rng):
    """A rotation that stops growing at place 6."""
    return score(Rotary(8), q, k, min(t, 6), min(s, 6))


_KINDS = {
    "rotary": lambda q, k, t, s, rng: score(Rotary(8), q, k, t, s),
    "sinusoidal": lambda q, k, t, s, rng: score(Sinusoidal(8), q, k, t, s),
    "learned": lambda q, k, t, s, rng: score(_with_table(Learned(8, 32), rng), q, k, t, s),
    "relative": lambda q, k, t, s, rng: score(
        _with_table(Relative(8, heads=1, buckets=8, distance=9), rng), q, k, t, s
    ),
    "query not rotated": lambda q, k, t, s, rng: score(Rotary(8), q, k, 0, s),
    "late": _late,
}


def shift_error(score, N):
    """The largest difference between two scores of the same distance, for all places below N."""
    worst = 0.0
    for distance in range(N):
        scores = [score(s + distance, s) for s in range(N - distance)]
        worst = max(worst, max(scores) - min(scores))
    return worst


def _worst(score, pairs):
    """The largest range of scores among pairs (t, s) that `pairs` gives together."""
    ranges = [[score(t, s) for t, s in group] for group in pairs]
    return max((max(group) - min(group) for group in ranges if group), default=0.0)


def _one_step_on(score, N):
    pairs = ((t, s) for t in range(N - 1) for s in range(t + 1))
    return max((abs(score(t + 1, s + 1) - score(t, s)) for t, s in pairs), default=0.0)


def _first_row(score, N):
    pairs = ((t, s) for t in range(N) for s in range(t + 1))
    return max(abs(score(t, s) - score(t - s, 0)) for t, s in pairs)


def _both_sides(score, N):
    return _worst(
        score,
        ([(s + d, s) for s in range(N) if 0 <= s + d < N] for d in range(1 - N, N)),
    )


def _scores(rng):
    for kind, N in (
        ("rotary", 6),
        ("learned", 1),
        ("late", 5),
        ("relative", 12),
        ("sinusoidal", 9),
        ("query not rotated", 7),
        ("learned", 8),
    ):
        yield Case((Score(kind), N))
    yield Case((Score("late"), 12), long=True)


# ---------------------------------------------------------------- norms and MLPs


def rms_norm(x, w, eps):
    """Divide each vector by the root of the mean of its squares: x (B,T,D), w (D)."""
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * w


def _rms_norm_loop(x, w, eps):
    y = torch.empty_like(x)
    for b, rows in enumerate(x):
        for t, row in enumerate(rows):
            square = sum(value**2 for value in row.tolist()) / len(row)
            y[b, t] = row / math.sqrt(square + eps) * w
    return y


def _vectors(rng):
    for (B, T, D), scale, eps in (
        ((2, 3, 4), 1.0, 1e-5),
        ((1, 1, 1), 3.0, 1e-5),
        ((3, 2, 5), 1e-2, 1e-2),  # so small that eps counts
        ((1, 4, 3), 100.0, 1e-6),
    ):
        yield Case((scale * (normal(rng, B, T, D) + 0.5), normal(rng, D), eps))


def swiglu(x, weights):
    """Cut 8 D^2 numbers into gate (F,D), up (F,D) and out (D,F), and apply them: x (B,T,D)."""
    D = x.shape[-1]
    hidden = len(weights) // (3 * D)  # F: three matrices of D times F
    gate, up, out = weights.chunk(3)
    gate, up, out = gate.view(hidden, D), up.view(hidden, D), out.view(D, hidden)
    return (F.silu(x @ gate.T) * (x @ up.T)) @ out.T


def _swiglu_loop(x, weights):
    D = x.shape[-1]
    hidden = 8 * D // 3
    rows, y = weights.view(3, -1), torch.zeros_like(x)
    for f in range(hidden):
        g = (x * rows[0, f * D : (f + 1) * D]).sum(dim=-1)
        u = (x * rows[1, f * D : (f + 1) * D]).sum(dim=-1)
        for d in range(D):
            y[..., d] += g / (1 + (-g).exp()) * u * rows[2, d * hidden + f]
    return y


def _gated(join, swapped=False, turned=False):
    """SwiGLU with another way to join gate and up, or with matrices in another place."""

    def answer(x, weights):
        D = x.shape[-1]
        gate, up, out = weights.chunk(3)
        gate, up = (up, gate) if swapped else (gate, up)
        out = out.view(-1, D).T if turned else out.view(D, -1)
        return join(x @ gate.view(-1, D).T, x @ up.view(-1, D).T) @ out.T

    return answer


def _silu_gate(gate, up):
    return F.silu(gate) * up


def _flat(rng):
    for B, T, D in ((2, 3, 3), (1, 1, 6), (3, 2, 9), (1, 5, 3)):
        yield Case((normal(rng, B, T, D), normal(rng, 8 * D * D)))


EXERCISES = (
    Exercise(
        rotate,
        truth=_rotate_loop,
        cases=_heads,
        hints=(
            "For each pair and each place there is one angle: make a table of them, (T, K/2).",
            "The first half of the channels are the a's of all pairs, the second half the b's.",
            "Rotating (a, b) by an angle gives (a cos - b sin, a sin + b cos).",
        ),
        mistakes={
            "The places count from t0, not from 0.": lambda x, t0: rotate(x, 0),
            "Each place has an angle of its own: t0, then t0 + 1 and so on.": _each_at_once,
            "That rotates along the heads; time is the third axis.": lambda x, t0: rotate(
                x.transpose(1, 2), t0
            ).transpose(1, 2),
            "A pair is channel i and channel i + K/2, not two neighbours.": _neighbours,
            "Each pair has a frequency of its own.": _equally_fast,
            "That rotates the other way round.": lambda x, t0: torch.cat(
                [*reversed(rotate(torch.cat(x.chunk(2, -1)[::-1], -1), t0).chunk(2, -1))], dim=-1
            ),
        },
    ),
    Exercise(
        rms_norm,
        truth=_rms_norm_loop,
        cases=_vectors,
        hints=(
            "Root, mean, square, read from right to left. Over which axis is the mean?",
            "keepdim=True keeps an axis of length 1, so that the division fits.",
        ),
        mistakes={
            "That takes off the mean as well, like LayerNorm.": lambda x, w, eps: rms_norm(
                x - x.mean(dim=-1, keepdim=True), w, eps
            ),
            "Each vector has its own mean square: the mean runs over D.": lambda x, w, eps: (
                x / (x.square().mean(dim=1, keepdim=True) + eps).sqrt() * w
            ),
            "It is the mean of the squares, not their sum.": lambda x, w, eps: (
                x / (x.square().sum(dim=-1, keepdim=True) + eps).sqrt() * w
            ),
            "The root is missing.": lambda x, w, eps: (
                x / (x.square().mean(dim=-1, keepdim=True) + eps) * w
            ),
            "eps belongs under the root, with the mean square.": lambda x, w, eps: (
                x / (x.square().mean(dim=-1, keepdim=True).sqrt() + eps) * w
            ),
            "The weights are missing.": lambda x, w, eps: rms_norm(x, torch.ones_like(w), eps),
        },
    ),
    Exercise(
        swiglu,
        truth=_swiglu_loop,
        cases=_flat,
        hints=(
            "There are 8 D^2 numbers for three matrices of D times F. How large is F?",
            "chunk(3) gives the three matrices as rows of numbers; view gives them their shapes.",
            "The gate is silu of x times the first matrix: F.silu(x @ gate.T).",
        ),
        mistakes={
            "The gate is the first matrix: silu belongs to it, not to the second.": _gated(
                _silu_gate, swapped=True
            ),
            "silu acts on the gate alone, before the product.": _gated(
                lambda gate, up: F.silu(gate * up)
            ),
            "silu(g) is g times sigmoid(g); a factor g is missing.": _gated(
                lambda gate, up: gate.sigmoid() * up
            ),
            "That gate is a GELU.": _gated(lambda gate, up: F.gelu(gate) * up),
            "The last matrix leads back, so its shape is (D, F).": _gated(_silu_gate, turned=True),
            "Nothing is gated: multiply the two.": _gated(lambda gate, up: F.silu(gate) + up),
        },
    ),
    Exercise(
        shift_error,
        cases=_scores,
        hints=(
            "Which pairs (t, s) have the distance 2? Ask for the scores of all of them.",
            "Of each distance, the largest difference is that of the largest and the smallest.",
        ),
        mistakes={
            "That compares scores of different distances.": lambda score, N: _worst(
                score, [[(t, s) for t in range(N) for s in range(t + 1)]]
            ),
            "Small steps add up: compare all scores of a distance, not only neighbours.": (
                _one_step_on
            ),
            "Compare all scores of a distance with each other, not only with the first.": (
                _first_row
            ),
            "A query sees no key after it: leave out the pairs with s above t.": _both_sides,
            "Distance 0 alone does not tell.": lambda score, N: _worst(
                score, [[(t, t) for t in range(N)]]
            ),
            "That is the sum of the differences, not the largest one.": lambda score, N: sum(
                _worst(score, [[(s + d, s) for s in range(N - d)]]) for d in range(N)
            ),
        },
    ),
)
