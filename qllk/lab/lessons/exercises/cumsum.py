"""Exercises of lesson 03, Keep a running sum."""

from __future__ import annotations

import torch

from ....model import kernels
from ...exercise import Case, Exercise, normal, shaped


def kernel(q, k, v):
    """The kernel without a loop, for inputs of shape (B, T, D)."""
    return q * (k * v).cumsum(dim=1)


def resume(k, v, S):
    """All sums of k * v that follow a state S of shape (B, D), and the state after the last one."""
    sums = S[:, None] + (k * v).cumsum(dim=1)
    return sums, sums[:, -1]


def state_numbers(d_model, heads):
    """How many numbers the state of linear attention holds, its heads as wide as they can be."""
    width = d_model // heads
    return heads * width * width


def average(q, k, v):
    """The average of v so far, weighted by q k in heads of width one: q cancels."""
    return (k * v).cumsum(dim=1) / k.cumsum(dim=1)


def _average_loop(q, k, v):
    """The definition of `average`, with its weights."""
    y = torch.zeros_like(v)
    for t in range(v.shape[1]):
        weights = q[:, t, None] * k[:, : t + 1]
        y[:, t] = (weights * v[:, : t + 1]).sum(dim=1) / weights.sum(dim=1)
    return y


def _features(rng):
    for B, T, D in ((1, 1, 3), (2, 5, 3), (3, 11, 1)):
        q, k = (normal(rng, B, T, D).abs() + 0.1 for _ in "qk")
        yield Case((q, k, normal(rng, B, T, D)))


EXERCISES = (
    Exercise(
        kernel,
        truth=lambda q, k, v: kernels.cumsum_kernel_loop(q, k, v)[0],
        cases=shaped("B T D, B T D, B T D", (1, 1, 3), (2, 5, 3), (3, 11, 1), (2, 70, 5)),
        hints=(
            "Three lines of the loop become three elementwise operations on whole tensors.",
            "torch's cumsum adds up along one axis: which of B, T and D is time?",
            "The query multiplies the finished sum, so it stays outside.",
        ),
        mistakes={
            "That adds up over the channels, not over time.": lambda q, k, v: (
                q * (k * v).cumsum(dim=2)
            ),
            "That is the sum over all of time, the future included.": lambda q, k, v: (
                q * (k * v).sum(dim=1, keepdim=True)
            ),
            "The query went into the sum; it belongs to its own step only.": lambda q, k, v: (
                q * k * v
            ).cumsum(dim=1),
            "Each sum misses its own step.": lambda q, k, v: q * ((k * v).cumsum(dim=1) - k * v),
        },
        time_axis=1,
        steepest=1.1,
        sized=lambda T: tuple(torch.zeros(1, T, 4, dtype=torch.float64) for _ in "qkv"),
    ),
    Exercise(
        resume,
        truth=lambda k, v, S: kernels.running_sum_loop(k * v, S=S),
        cases=shaped("B T D, B T D, B D", (1, 1, 3), (2, 5, 3), (3, 11, 1)),
        hints=(
            "What came before is one more term of every sum.",
            "S has no time axis. Give it one of length 1, and torch spreads it over all steps.",
        ),
        mistakes={
            "The state that came before is missing.": lambda k, v, S: (
                (k * v).cumsum(dim=1),
                (k * v).sum(dim=1),
            ),
            "One row's state went to every row of the batch.": lambda k, v, S: resume(
                k, v, S[:1].expand_as(S)
            ),
            "The state was added up again at each step.": lambda k, v, S: (
                (k * v + S[:, None]).cumsum(dim=1),
                (k * v + S[:, None]).sum(dim=1),
            ),
        },
    ),
    Exercise(
        state_numbers,
        cases=shaped("d_model, heads", (8, 2), (8, 8), (12, 1), (256, 4)),
        hints=(
            "How wide is one head, and what is the shape of its state?",
            "One head of width w holds a w by w matrix.",
        ),
        mistakes={
            "That is one matrix as wide as the model.": lambda d_model, heads: d_model**2,
            "That is one number for each channel: right only for width one.": lambda d, h: d,
            "That is one head; there are several.": lambda d_model, heads: (d_model // heads) ** 2,
        },
    ),
    Exercise(
        average,
        truth=_average_loop,
        cases=_features,
        hints=(
            "Write down one result as a fraction. Which factors stand above and below the bar?",
            "Two cumulative sums and a division are enough.",
        ),
        mistakes={
            "The sum is not divided by the sum of its weights.": lambda q, k, v: (
                q * (k * v).cumsum(dim=1)
            ),
            "The query is left above the fraction bar, but not below it.": lambda q, k, v: (
                q * average(q, k, v)
            ),
            "That divides by how many there are, not by their weights.": lambda q, k, v: (
                (k * v).cumsum(dim=1) / torch.arange(1, v.shape[1] + 1)[:, None]
            ),
            "That divides by the weights of all channels together.": lambda q, k, v: (
                (q * (k * v).cumsum(dim=1)) / (q * k.cumsum(dim=1)).sum(dim=-1, keepdim=True)
            ),
        },
        time_axis=1,
    ),
)
