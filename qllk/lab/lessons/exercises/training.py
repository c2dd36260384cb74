"""Exercises of lesson 09, Train it live."""

from __future__ import annotations

import torch

from ....probes.evaluate import LN2
from ...exercise import Case, Exercise


def windows(data, starts, window):
    """Inputs and targets: `window` bytes from each start, and the byte after each of them."""
    rows = torch.stack([data[s : s + window + 1] for s in starts.tolist()])
    return rows[:, :-1], rows[:, 1:]


def clip(gradient, most):
    """The gradient, shortened to the length `most` if it is longer, its direction kept."""
    norm = gradient.square().sum().sqrt()
    return gradient * min(1.0, most / norm.item()) if norm > 0 else gradient


def unigram(train, valid):
    """Bits per byte of a table of single bytes: each counted in `train`, plus one, over all."""
    counts = torch.bincount(train, minlength=256).double() + 1.0
    return -(counts / counts.sum()).log2()[valid].mean().item()


def texts(rng):
    for n, rows, window in ((9, 1, 1), (30, 3, 7), (40, 2, 16)):
        data = torch.randint(256, (n,), generator=rng)
        yield Case((data, torch.randint(n - window, (rows,), generator=rng), window))


def gradients(rng):
    for shape, most in (((3,), 100.0), ((5,), 0.5), ((4, 3), 1.0), ((2, 1), 0.1)):
        yield Case((torch.randn(*shape, generator=rng, dtype=torch.float64), most))


def _splits(rng):
    for n in (5, 60, 600):
        letters = torch.randint(97, 103, (n,), generator=rng)
        yield Case((letters, torch.randint(96, 104, (n // 2,), generator=rng)))


def _bits_of(chances, valid):
    return -chances.double().log2()[valid].mean().item()


EXERCISES = (
    Exercise(
        windows,
        cases=texts,
        hints=(
            "A row needs one byte more than the window: the last one is a target only.",
            "Cut the rows first; inputs and targets are two views of the same row.",
        ),
        mistakes={
            "Inputs and targets are the same bytes: the model would copy.": lambda d, s, w: (
                (windows(d, s, w)[0],) * 2
            ),
            "The targets stand before their inputs: that predicts the past.": lambda d, s, w: (
                windows(d, s, w)[::-1]
            ),
            "The rows start one byte late.": lambda data, starts, window: windows(
                data.roll(-1), starts, window
            ),
        },
    ),
    Exercise(
        clip,
        cases=gradients,
        hints=(
            "Only the length changes, so multiply everything by one number.",
            "That number is never above 1: a short gradient stays as it is.",
        ),
        mistakes={
            "Each number was cut by itself, which turns the direction.": lambda gradient, most: (
                gradient.clamp(-most, most)
            ),
            "Short gradients were made longer.": lambda gradient, most: (
                gradient * (most / gradient.norm())
            ),
            "That is only the largest number, not the length.": lambda gradient, most: (
                gradient * min(1.0, most / gradient.abs().max().item())
            ),
        },
    ),
    Exercise(
        unigram,
        cases=_splits,
        hints=(
            "torch.bincount counts; give it minlength=256.",
            "Plus one for each of the 256 bytes, so that an unseen byte has a chance, too.",
            "The mean of minus log2 of the chances, over the bytes of `valid`.",
        ),
        mistakes={
            "Those are nats; bits take the logarithm to base 2.": lambda train, valid: (
                unigram(train, valid) * LN2
            ),
            "The table was counted in the held-out text itself.": lambda train, valid: unigram(
                valid, valid
            ),
            "That judges the table on the text it was counted in.": lambda train, valid: unigram(
                train, train
            ),
            "Without the plus one an unseen byte costs infinitely much.": lambda train, valid: (
                _bits_of(torch.bincount(train, minlength=256) / len(train), valid)
            ),
        },
    ),
)
