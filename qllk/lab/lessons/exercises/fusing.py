"""Exercises of lesson 07, Fuse the projections."""

from __future__ import annotations

import torch

from ...exercise import Case, Exercise, normal, shaped


def fuse(weights, biases):
    """One weight and one bias for several layers side by side, in the given order."""
    return torch.cat(weights), torch.cat(biases)


def split(y, heads):
    """A fused output (B, T, 3 D) as q, k and v, each of shape (B, heads, T, D / heads)."""
    return tuple(part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in y.chunk(3, dim=-1))


def chain(W1, b1, W2, b2):
    """One weight and one bias that do what a first layer and then a second do."""
    return W2 @ W1, W2 @ b1 + b2


def _fuse_loop(weights, biases):
    """The definition of `fuse`: one output number at a time."""
    rows = [row for weight in weights for row in weight]
    return torch.stack(rows), torch.stack([number for bias in biases for number in bias])


def _split_loop(y, heads):
    """The definition of `split`: one number at a time."""
    B, T, D = y.shape[0], y.shape[1], y.shape[2] // 3
    K = D // heads
    parts = [y.new_zeros(B, heads, T, K) for _ in "qkv"]
    for channel in range(3 * D):
        part, within = divmod(channel, D)
        head, place = divmod(within, K)
        parts[part][:, head, :, place] = y[:, :, channel]
    return tuple(parts)


def _chain_loop(W1, b1, W2, b2):
    """The definition of `chain`: send nothing through both layers, then each unit vector."""

    def both(x):
        return W2 @ (W1 @ x + b1) + b2

    b = both(W1.new_zeros(W1.shape[1]))
    units = torch.eye(W1.shape[1], dtype=W1.dtype)
    return torch.stack([both(unit) - b for unit in units], dim=1), b


def _interleaved(weights, biases):
    """The first row of each layer, then the second of each …"""
    return torch.stack(weights, 1).flatten(0, 1), torch.stack(biases, 1).flatten()


def layers(rng):
    # The last one has narrow keys and values, as a model whose queries share them.
    for D, heights in ((3, (3, 3, 3)), (1, (1, 1, 1)), (5, (5, 5, 5)), (4, (8, 2, 2))):
        yield Case(
            (tuple(normal(rng, n, D) for n in heights), tuple(normal(rng, n) for n in heights))
        )


def outputs(rng):
    for B, T, heads, K in ((2, 5, 2, 3), (1, 1, 1, 1), (3, 7, 3, 1), (1, 4, 1, 5)):
        yield Case((normal(rng, B, T, 3 * heads * K), heads))


EXERCISES = (
    Exercise(
        fuse,
        truth=_fuse_loop,
        cases=layers,
        hints=(
            "Each row of a weight makes one output number; no row knows of the others.",
            "torch.cat glues tensors together along an axis that is there already.",
        ),
        mistakes={
            "The first two layers changed places.": lambda weights, biases: fuse(
                (weights[1], weights[0], *weights[2:]), (biases[1], biases[0], *biases[2:])
            ),
            "The rows are interleaved: "
            "one of each layer in turn, so chunk would mix them.": _interleaved,
            "The weights stand in one order and the biases in the reverse.": lambda w, b: fuse(
                w, b[::-1]
            ),
            "Side by side, that is a layer with a longer input, "
            "not with a longer output.": lambda w, b: (torch.cat(w, dim=-1), torch.cat(b)),
            "The biases were added up; each belongs to its own outputs.": lambda weights, biases: (
                torch.cat(weights),
                sum(biases),
            ),
        },
    ),
    Exercise(
        split,
        truth=_split_loop,
        cases=outputs,
        hints=(
            "First take the three parts apart, then look at one part by itself.",
            "A part is (B, T, D). unflatten makes two axes of its last: heads first, or K?",
            "Then time and heads change places: transpose does that, reshape does not.",
        ),
        mistakes={
            "That takes the parts inside each head; "
            "here the parts come first, then the heads.": lambda y, h: tuple(
                y.unflatten(-1, (h, 3, -1)).permute(3, 0, 2, 1, 4)
            ),
            "That takes every third number; a part is one piece in a row.": lambda y, heads: split(
                y.unflatten(-1, (-1, 3)).mT.flatten(2), heads
            ),
            "q and k changed places.": lambda y, heads: tuple(
                split(y, heads)[i] for i in (1, 0, 2)
            ),
            "A reshape straight to (B, H, T, K) mixes time with heads.": lambda y, heads: tuple(
                part.reshape(len(y), heads, y.shape[1], -1) for part in y.chunk(3, dim=-1)
            ),
            "Each head got channels that lie apart; a head is one piece in a row.": lambda y, h: (
                tuple(
                    part.unflatten(-1, (-1, h)).permute(0, 3, 1, 2) for part in y.chunk(3, dim=-1)
                )
            ),
        },
    ),
    Exercise(
        chain,
        truth=_chain_loop,
        cases=shaped("M B, M, A M, A", (3, 3, 3), (1, 1, 1), (7, 4, 2), (1, 5, 6)),
        hints=(
            "Write the first layer's output into the second, and multiply out.",
            "The matrix that stands next to x is the one that works first.",
            "What is left when x is zero? That is the bias.",
        ),
        mistakes={
            "The matrices stand in the wrong order: "
            "the one next to x works first.": lambda W, b, x, y: (W @ x, x @ b + y),
            "The first bias has to pass the second layer, too.": lambda W1, b1, W2, b2: (
                W2 @ W1,
                b1 + b2,
            ),
            "The second bias is missing.": lambda W1, b1, W2, b2: (W2 @ W1, W2 @ b1),
            "That sets the layers side by side, "
            "but here one follows the other.": lambda W, b, x, y: (
                torch.cat((W, x.mT)),
                torch.cat((b, y)),
            ),
        },
    ),
)
