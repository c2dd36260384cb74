"""Exercises of lesson 06, Fold bytes into patches."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from ...exercise import Exercise, shaped


def fold(x, weight):
    """A strided convolution as one product: x (B,T,D), weight (E,D,R) -> (B,T//R,E)."""
    B, T, D = x.shape
    E, _, R = weight.shape
    P = T // R
    side_by_side = x[:, : P * R].reshape(B, P, R * D)
    matrix = weight.transpose(1, 2).reshape(E, R * D)  # places first, as the bytes lie
    return side_by_side @ matrix.T


def _fold_loop(x, weight):
    """The definition, a byte at a time."""
    B, T, _ = x.shape
    E, _, R = weight.shape
    patches = torch.zeros(B, T // R, E, dtype=x.dtype)
    for t in range(T // R * R):
        patches[:, t // R] += x[:, t] @ weight[:, :, t % R].T
    return patches


def hint_index(t, R):
    """Which complete patch, and which of its R hints, serves the logit at t; -1 if there is none.

    It predicts byte t + 1, so that byte's place is what counts.
    """
    return (t + 1) // R - 1, (t + 1) % R


def _hint_index_loop(t, R):
    """The definition: read the bytes 0 … t, and count."""
    complete, loose = -1, 0
    for _ in range(t + 1):
        loose += 1
        if loose == R:
            complete, loose = complete + 1, 0
    return complete, loose


def shift(x, R):
    """At each position the mean of the newest complete patch, for x (B,T,D); zero before it."""
    B, T, D = x.shape
    P = T // R
    means = x[:, : P * R].reshape(B, P, R, D).mean(dim=2)
    means = torch.cat((torch.zeros(B, 1, D, dtype=x.dtype), means), dim=1)
    complete = (torch.arange(T) + 1) // R  # patches complete once byte t is read
    return means[:, complete]


def _shift_loop(x, R):
    """The definition, a position at a time."""
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        end = (t + 1) // R * R  # bytes in complete patches
        if end:
            y[:, t] = x[:, end - R : end].mean(dim=1)
    return y


def _laid(x, R, late):
    """Means laid onto their own bytes, `late` positions later; zeros elsewhere."""
    B, T, D = x.shape
    P = T // R
    in_place = x[:, : P * R].reshape(B, P, R, D).mean(dim=2).repeat_interleave(R, dim=1)
    return pad(in_place, (0, 0, late, T))[:, :T]


def _by_a_table(x, R):
    """Right, with one weight for every pair of positions."""
    t = torch.arange(x.shape[1])
    end = (t + 1) // R * R
    weights = (t >= end[:, None] - R) & (t < end[:, None])  # (T,T)
    return weights.to(x.dtype) @ x / R


def cut(x, R):
    """x (B,T,D) -> (B,P,R,D), without the unfinished patch."""
    P = x.shape[1] // R
    return x[:, : P * R].unflatten(1, (P, R))


def _by_all(x, R):
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        if end := (t + 1) // R * R:
            y[:, t] = x[:, :end].mean(dim=1)
    return y


EXERCISES = (
    Exercise(
        fold,
        truth=_fold_loop,
        cases=shaped(
            "B T D, E D R",
            (1, 8, 3, 5, 4),
            (2, 16, 2, 5, 8),
            (1, 1, 3, 3, 8),
            (3, 11, 1, 4, 3),
            (2, 7, 3, 2, 1),
        ),
        hints=(
            "Cut off the bytes of the unfinished patch, then lay R vectors side by side.",
            "A row of yours runs over places, then channels. Over what does weight[e] run first?",
        ),
        mistakes={
            "The weight runs over channels, then places; "
            "the bytes lie the other way round.": lambda x, w: (
                cut(x, w.shape[2]).flatten(2) @ w.flatten(1).T
            ),
            "The kernel was turned round; torch's Conv1d reads it forwards.": lambda x, w: fold(
                x, w.flip(2)
            ),
            "Only the last byte of each patch was used.": lambda x, w: (
                cut(x, w.shape[2])[:, :, -1] @ w[:, :, -1].T
            ),
            "Every place was treated alike: that is a mean, and order is lost.": lambda x, w: (
                cut(x, w.shape[2]).mean(dim=2) @ w.sum(dim=2).T
            ),
            "The first bytes were left out; the unfinished patch is at the end.": lambda x, w: fold(
                x[:, x.shape[1] % w.shape[2] :], w
            ),
            "The unfinished patch was filled up; it has to wait.": lambda x, w: fold(
                pad(x, (0, 0, 0, -x.shape[1] % w.shape[2])), w
            ),
        },
    ),
    Exercise(
        hint_index,
        truth=_hint_index_loop,
        cases=shaped("t, r", (0, 8), (6, 8), (7, 8), (8, 8), (4, 1), (13, 3), (14, 3)),
        hints=(
            "The logit at t is about byte t + 1. Find the patch and the place of that byte.",
            "The patch of byte t + 1 holds byte t + 1. Which is the newest one that does not?",
        ),
        mistakes={
            "That is where byte t lies: its patch still holds bytes to come.": lambda t, R: (
                t // R,
                t % R,
            ),
            "That patch holds byte t + 1 itself: the leak.": lambda t, R: (
                (t + 1) // R,
                (t + 1) % R,
            ),
            "Off by one: the logit at t is about byte t + 1.": lambda t, R: (t // R - 1, t % R),
            "One patch too old: at its last byte a patch is complete.": lambda t, R: (
                t // R - 1,
                (t + 1) % R,
            ),
            "The two are swapped: first the patch, then the place.": lambda t, R: hint_index(t, R)[
                ::-1
            ],
        },
    ),
    Exercise(
        shift,
        truth=_shift_loop,
        cases=shaped(
            "B T D, r",
            (1, 8, 2, 4),
            (2, 16, 3, 8),
            (1, 1, 2, 1),
            (1, 1, 3, 4),
            (3, 11, 2, 3),
            (2, 7, 1, 1),
        ),
        hints=(
            "The mean of a patch may be read first at the patch's last byte.",
            "How many patches are complete once byte t is read? Count them for t = 0 … 2 R.",
            "With a row of zeros in front of the means, that count is the index.",
        ),
        mistakes={
            "The means lie on their own bytes.": lambda x, R: _laid(x, R, 0),
            "One place later is not enough: a patch is complete at its last byte.": lambda x, R: (
                _laid(x, R, min(1, R - 1))
            ),
            "One place too late: at its last byte a patch is complete.": lambda x, R: _laid(
                x, R, R
            ),
            "That is the mean of all complete patches, not of the newest.": lambda x, R: _by_all(
                x, R
            ),
            "That is the mean of the last R bytes, "
            "whether they fill a patch or not.": lambda x, R: (
                pad(x, (0, 0, R - 1, 0)).unfold(1, R, 1).mean(dim=-1)
            ),
            "That is the sum of a patch, not its mean.": lambda x, R: R * shift(x, R),
            "A table of all pairs of positions grows with the square of the length.": _by_a_table,
        },
        time_axis=1,
        steepest=1.1,
        sized=lambda T: (torch.zeros(1, T, 4, dtype=torch.float64), 8),
    ),
)
