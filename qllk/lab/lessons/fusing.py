"""Lesson 06, Fuse the projections."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from ...probes import measure
from ...study.figures import Bars
from ..check import WRONG_KIND, WRONG_VALUES, Case, Exercise, Mistake, normal
from ..explore import Explorer, choice, slider

PARTS = {"q, k, v": 3, "q, k, v and gate": 4}
WIDTHS, ROWS = (16, 32, 64, 128, 256), (1, 2, 4, 8, 16, 32, 64, 128, 256)


# ---------------------------------------------------------------- exercises


def fuse(weights, biases):
    """One weight and one bias for several layers side by side, in the given order."""
    return torch.cat(weights), torch.cat(biases)


def split(y, heads):
    """A fused output (B, T, 3 D) as q, k and v, each of shape (B, heads, T, D / heads)."""
    return tuple(part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in y.chunk(3, dim=-1))


def chain(W1, b1, W2, b2):
    """One weight and one bias that do what a first layer and then a second do."""
    return W2 @ W1, W2 @ b1 + b2


def fuse_loop(weights, biases):
    """The definition of `fuse`: one output number at a time."""
    rows = [row for weight in weights for row in weight]
    return torch.stack(rows), torch.stack([number for bias in biases for number in bias])


def split_loop(y, heads):
    """The definition of `split`: one number at a time."""
    B, T, D = y.shape[0], y.shape[1], y.shape[2] // 3
    K = D // heads
    parts = [y.new_zeros(B, heads, T, K) for _ in "qkv"]
    for channel in range(3 * D):
        part, within = divmod(channel, D)
        head, place = divmod(within, K)
        parts[part][:, head, :, place] = y[:, :, channel]
    return tuple(parts)


def chain_loop(W1, b1, W2, b2):
    """The definition of `chain`: send nothing through both layers, then each unit vector."""

    def both(x):
        return W2 @ (W1 @ x + b1) + b2

    b = both(W1.new_zeros(W1.shape[1]))
    units = torch.eye(W1.shape[1], dtype=W1.dtype)
    return torch.stack([both(unit) - b for unit in units], dim=1), b


def interleaved(weights, biases):
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


def chains(rng):
    for before, middle, after in ((3, 3, 3), (1, 1, 1), (4, 7, 2), (5, 1, 6)):
        yield Case(
            (
                normal(rng, middle, before),
                normal(rng, middle),
                normal(rng, after, middle),
                normal(rng, after),
            )
        )


EXERCISES = (
    Exercise(
        name="fusing.fuse",
        difficulty=1,
        minutes=5,
        answer=fuse,
        truth=fuse_loop,
        cases=layers,
        hints=(
            "Each row of a weight makes one output number; no row knows of the others.",
            "torch.cat glues tensors together along an axis that is there already.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "The first two layers changed places.",
                lambda weights, biases: fuse(
                    (weights[1], weights[0], *weights[2:]), (biases[1], biases[0], *biases[2:])
                ),
            ),
            Mistake(
                WRONG_VALUES,
                "The rows are interleaved: one of each layer in turn, so chunk would mix them.",
                interleaved,
            ),
            Mistake(
                WRONG_VALUES,
                "The weights stand in one order and the biases in the reverse.",
                lambda weights, biases: fuse(weights, biases[::-1]),
            ),
            Mistake(
                WRONG_KIND,
                "Side by side, that is a layer with a longer input, not with a longer output.",
                lambda weights, biases: (torch.cat(weights, dim=-1), torch.cat(biases)),
            ),
            Mistake(
                WRONG_KIND,
                "The biases were added up; each belongs to its own outputs.",
                lambda weights, biases: (torch.cat(weights), sum(biases)),
            ),
        ),
    ),
    Exercise(
        name="fusing.split",
        difficulty=2,
        minutes=8,
        answer=split,
        truth=split_loop,
        cases=outputs,
        hints=(
            "First take the three parts apart, then look at one part alone.",
            "A part is (B, T, D). unflatten makes two axes of its last: heads first, or K?",
            "Then time and heads change places: transpose does that, reshape does not.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "That takes the parts inside each head; here the parts come first, then the heads.",
                lambda y, heads: tuple(y.unflatten(-1, (heads, 3, -1)).permute(3, 0, 2, 1, 4)),
            ),
            Mistake(
                WRONG_VALUES,
                "That takes every third number; a part is one piece in a row.",
                lambda y, heads: split(y.unflatten(-1, (-1, 3)).mT.flatten(2), heads),
            ),
            Mistake(
                WRONG_VALUES,
                "q and k changed places.",
                lambda y, heads: tuple(split(y, heads)[i] for i in (1, 0, 2)),
            ),
            Mistake(
                WRONG_VALUES,
                "A reshape straight to (B, H, T, K) mixes time with heads.",
                lambda y, heads: tuple(
                    part.reshape(len(y), heads, y.shape[1], -1) for part in y.chunk(3, dim=-1)
                ),
            ),
            Mistake(
                WRONG_VALUES,
                "Each head got channels that lie apart; a head is one piece in a row.",
                lambda y, heads: tuple(
                    part.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)
                    for part in y.chunk(3, dim=-1)
                ),
            ),
        ),
    ),
    Exercise(
        name="fusing.chain",
        difficulty=3,
        minutes=10,
        answer=chain,
        truth=chain_loop,
        cases=chains,
        hints=(
            "Write the first layer's output into the second, and multiply out.",
            "The matrix that stands next to x is the one that works first.",
            "What is left when x is zero? That is the bias.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "The matrices stand in the wrong order: the one next to x works first.",
                lambda W1, b1, W2, b2: (W1 @ W2, W2 @ b1 + b2),
            ),
            Mistake(
                WRONG_VALUES,
                "The first bias has to pass the second layer, too.",
                lambda W1, b1, W2, b2: (W2 @ W1, b1 + b2),
            ),
            Mistake(
                WRONG_VALUES,
                "The second bias is missing.",
                lambda W1, b1, W2, b2: (W2 @ W1, W2 @ b1),
            ),
            Mistake(
                WRONG_KIND,
                "That sets the layers side by side, but here one follows the other.",
                lambda W1, b1, W2, b2: (torch.cat((W1, W2.mT)), torch.cat((b1, b2))),
            ),
        ),
    ),
)


# ---------------------------------------------------------------- side by side


class Apart(nn.Module):
    """Several projections, each a layer of its own: x (..., D) -> a tuple of (..., D)."""

    def __init__(self, width, parts=3):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(parts))

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


class Together(nn.Module):
    """The same projections out of one layer: x (..., D) -> a tuple of (..., D)."""

    def __init__(self, apart):
        super().__init__()
        self.parts, width = len(apart.layers), apart.layers[0].in_features
        self.layer = nn.Linear(width, self.parts * width)
        weight, bias = fuse(*zip(*((one.weight, one.bias) for one in apart.layers), strict=True))
        self.layer.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, x):
        return self.layer(x).chunk(self.parts, dim=-1)


def stopwatch(*runs: Callable[[], object], rounds=3, at_least=0.01) -> list[float]:
    """The seconds that one call of each takes, measured in turn, on one core.

    Each is the lowest of a few medians, because other work on the machine only ever adds time.
    """
    with measure.single_thread(), torch.inference_mode():
        times = [
            [measure.median_seconds(run, at_least=at_least) for run in runs] for _ in range(rounds)
        ]
    return [min(some) for some in zip(*times, strict=True)]


@measure.single_thread()
def gain(width: int, rows: int) -> float:
    """How many times faster q, k and v are from one layer than from three, for `rows` bytes."""
    apart, x = Apart(width), torch.randn(rows, width)
    separate, fused = stopwatch(partial(apart, x), partial(Together(apart), x))
    return separate / fused


# ---------------------------------------------------------------- widget


@measure.single_thread()
def projections(width: int = 64, rows: int = 1, parts: str = "q, k, v"):
    """Projections apart and together: their time, and what can be counted."""
    apart = Apart(width, PARTS[parts])
    sides, x = {"separate": apart, "fused": Together(apart)}, torch.randn(rows, width)
    runs = [partial(side, x) for side in sides.values()]
    times = stopwatch(*runs, rounds=2, at_least=0.008)
    ratio = times[0] / times[1]
    work = [measure.count_flops(run) for run in runs]
    held = [sum(p.numel() for p in side.parameters()) for side in sides.values()]
    layers = [sum(isinstance(m, nn.Linear) for m in side.modules()) for side in sides.values()]

    def bars(title, values, unit):
        return Bars(title, dict(zip(sides, values, strict=True)), unit)

    return [
        bars(
            f"time of one call: fused is {ratio:.2f} times as fast", [t * 1e6 for t in times], "µs"
        ),
        bars("linear layers", layers, "in all"),
        bars("operations of one call", work, "operations"),
        bars("parameters", held, "numbers"),
    ]


def widget() -> Explorer:
    """Change the width and the number of bytes, and see where fusing pays."""
    return Explorer(
        "From how many bytes at once is there nothing left to win?",
        {
            "width": slider("width", list(WIDTHS), 64),
            "rows": slider("bytes at once", list(ROWS), 1),
            "parts": choice("fused", list(PARTS)),
        },
        projections,
    )
