"""Exercises of lesson 08, Assemble the model."""

from __future__ import annotations

import math

import torch
from torch import nn

from ....model import families, layers, mixers
from ....model.blocks import Block
from ...exercise import Case, Exercise, shaped


def parameters(d_model, ratio):
    """How many numbers one block holds: a cumulative sum, an MLP, and a norm for each."""
    mixer = 4 * d_model**2 + d_model**2  # q, k, v and gate in one, then the output
    mlp = d_model * ratio * d_model + ratio * d_model * d_model  # up, then down again
    norms = 2 * d_model
    return mixer + mlp + norms


def block(x, mix, mlp, norm):
    """A pre-norm block: x (B,T,D) to the same shape."""
    x = x + mix(norm(x))
    return x + mlp(norm(x))


def first_loss(symbols):
    """What a guess costs, in nats, that finds all symbols equally likely."""
    return math.log(symbols)


def _counted(d_model, ratio):
    with torch.device("meta"):
        mixer, mlp = mixers.CumsumMixer(d_model), layers.SquaredReluMLP(d_model, ratio=ratio)
        return families.count_parameters(Block(mixer, mlp, nn.RMSNorm, d_model, 0.0))


def _block_loop(x, mix, mlp, norm):
    """The definition, written out: two sums, each of what was there and what a part adds."""
    mixed = mix(norm(x))
    middle = torch.stack([x[:, t] + mixed[:, t] for t in range(x.shape[1])], dim=1)
    thought = mlp(norm(middle))
    return torch.stack([middle[:, t] + thought[:, t] for t in range(x.shape[1])], dim=1)


def _past_mean(x):
    """The mean of all so far: the plainest causal mixer."""
    return x.cumsum(dim=1) / torch.arange(1, x.shape[1] + 1)[:, None]


def _squared_relu(x):
    return x.relu().square()


def _unit_size(x):
    return nn.functional.rms_norm(x, x.shape[-1:])


def _blocks(rng):
    for B, T, D in ((2, 5, 3), (1, 1, 4), (3, 11, 2), (1, 16, 4)):
        x = 3 * torch.randn(B, T, D, generator=rng, dtype=torch.float64)
        yield Case((x, _past_mean, _squared_relu, _unit_size))


EXERCISES = (
    Exercise(
        parameters,
        truth=_counted,
        cases=shaped("d_model, ratio", (8, 4), (3, 1), (128, 4), (5, 2), (256, 3)),
        hints=(
            "A linear layer from m to n numbers without a bias holds m times n.",
            "The mixer has one layer that is four times as wide, and an output projection.",
            "Each of the two norms has one scale for each channel.",
        ),
        mistakes={
            "The mixer's output projection is missing.": lambda d_model, ratio: (
                parameters(d_model, ratio) - d_model**2
            ),
            "The MLP goes up and comes down again: two matrices.": lambda d_model, ratio: (
                parameters(d_model, ratio) - ratio * d_model**2
            ),
            "The norms hold numbers too.": lambda d_model, ratio: (5 + 2 * ratio) * d_model**2,
            "These linear layers have no bias.": lambda d_model, ratio: (
                parameters(d_model, ratio) + (6 + ratio) * d_model
            ),
        },
    ),
    Exercise(
        block,
        truth=_block_loop,
        cases=_blocks,
        hints=(
            "There are two sums, and the second starts from the result of the first.",
            "A norm stands before each part, never on the skip itself.",
        ),
        mistakes={
            "The MLP's output has replaced x: its skip is missing.": lambda x, mix, mlp, norm: mlp(
                norm(x + mix(norm(x)))
            ),
            "Here the norms stand after the sums, "
            "so the skip is normed as well.": lambda x, m, y, n: n(n(x + m(x)) + y(n(x + m(x)))),
            "The skip starts from the normed x; it should carry x itself.": lambda x, m, y, n: (
                block(n(x), m, y, n)
            ),
            "The MLP read what was there before the mixing.": lambda x, mix, mlp, norm: (
                x + mix(norm(x)) + mlp(norm(x))
            ),
            "The norm went over time, not over the channels.": lambda x, mix, mlp, norm: block(
                x, mix, mlp, lambda y: norm(y.transpose(1, 2)).transpose(1, 2)
            ),
        },
        time_axis=1,
    ),
    Exercise(
        first_loss,
        cases=shaped("symbols", (256,), (2,), (10,), (50257,)),
        hints=(
            "Each symbol has probability 1 / symbols.",
            "The loss of a byte is minus the natural logarithm of the chance it was given.",
        ),
        mistakes={
            "Those are bits; nats were wanted.": lambda symbols: math.log2(symbols),
            "That is the chance itself.": lambda symbols: 1 / symbols,
            "A loss is minus the logarithm of the chance, so never negative.": lambda symbols: (
                -math.log(symbols)
            ),
        },
    ),
)
