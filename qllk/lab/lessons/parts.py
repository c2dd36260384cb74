"""Lesson 12, Choose the parts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...model.layers import MLPS, NORMS
from ...model.masks import causal_mask
from ...model.positions import POSITIONS, Rotary
from ...spec import Spec
from ...study.figures import Bars, Chart, Heat, Note
from ...text.corpora import Corpus
from ...training.recipe import Recipe
from ...training.trainer import Trainer
from ..explore import choice, explorer, slider
from ..ledger import DOES_NOT, IN_PART, UNTESTED, Claim, holds_if
from .exercises.race import verdict

# ---------------------------------------------------------------- a text whose floor is known

_LETTERS = 8
_TABLE = np.random.default_rng(7).dirichlet(np.full(_LETTERS, 0.2), (_LETTERS, _LETTERS))


def _draw(size, seed):
    """A letter depends on the two before it, and on which of them came first."""
    limits, letters = _TABLE.cumsum(axis=2), [0, 0]
    for share in np.random.default_rng(seed).random(size):
        found = int(np.searchsorted(limits[letters[-2], letters[-1]], share))
        letters.append(min(found, _LETTERS - 1))
    return np.array(letters[2:], dtype=np.uint8) + ord("a")


@cache
def two_letter_text(train: int = 200_000, held_out: int = 16_000) -> Corpus:
    """Text of eight letters, each drawn by the two letters before it, with its floor."""
    text, last = _draw(train, 0), _draw(held_out, 1)
    chances = _TABLE[last[:-2] - ord("a"), last[1:-1] - ord("a")]
    entropy = -(chances * np.log(np.maximum(chances, 1e-300))).sum(axis=1).mean()
    return Corpus("two letters decide", text, last, floor=float(entropy))


# ---------------------------------------------------------------- one part at a time

BASE = Spec(
    d_model=32,
    layers=2,
    mixers=(("softmax", {"heads": 2}),),
    mlp=("gelu", {"ratio": 4}),
    norm="rms",
    positions="rotary",
    context=128,
)
# What is changed, and into what. A SwiGLU has three matrices: at 8/3, as many parameters.
SWAPS: dict[str, dict[str, dict]] = {
    "norm": {
        "rms": {},
        "layer": {"norm": "layer"},
        "tanh": {"norm": "tanh"},
        "tanh, ends rms": {"norm": "tanh", "norm_in": "rms", "norm_out": "rms"},
        "none": {"norm": "none"},
    },
    "mlp": {
        "gelu": {},
        "swiglu": {"mlp": ("swiglu", {"ratio": 8 / 3})},
        "squared relu": {"mlp": ("relu2", {"ratio": 4})},
    },
    "positions": {
        "rotary": {},
        "relative": {"positions": ("relative", {"heads": 2})},
        "learned": {"positions": "learned"},
        "sinusoidal": {"positions": "sinusoidal"},
        "none": {"positions": "none"},
    },
}

Losses = dict[str, dict[str, list[float]]]  # by part and choice, the nats of each seed


def train_swaps(recipe: Recipe, seeds: int = 3) -> Losses:
    """Train the base and each change of one part, with every seed; nats on the held-out text."""
    text = two_letter_text()

    specs = {
        part: {name: BASE.but(**change) for name, change in choices.items()}
        for part, choices in SWAPS.items()
    }
    base = [train_one(BASE, seed, recipe, text) for seed in range(seeds)]
    return {
        part: {
            name: base if spec == BASE else [train_one(spec, s, recipe, text) for s in range(seeds)]
            for name, spec in choices.items()
        }
        for part, choices in specs.items()
    }


def train_one(spec: Spec, seed: int, recipe: Recipe, text: Corpus) -> float:
    """Train one model; nats per letter of the whole held-out text."""
    trainer = Trainer(spec, text, Recipe(**{**vars(recipe), "seed": seed}))
    list(trainer)
    return trainer.validate(len(text.valid))


def swap_lines(losses: Losses) -> list[str]:
    """Each choice with its seeds, and whether it is ahead of the base by more than luck."""
    lines = []
    for part, choices in losses.items():
        base, *others = choices
        for name in (base, *others):
            seeds = " ".join(f"{nats:.3f}" for nats in choices[name])
            word = "" if name == base else f"  {verdict(choices[name], choices[base])}"
            lines.append(f"{part:10} {name:15} {seeds}{word}")
    return lines


def swap_bars(losses: Losses, floor: float) -> Bars:
    """The means of all choices, over the floor of the text."""
    means = {
        f"{part}: {name}": statistics.fmean(nats)
        for part, choices in losses.items()
        for name, nats in choices.items()
    }
    return Bars("held out, three seeds", means | {"floor of the text": floor}, "nats")


# Student's t for 2, 3, … seeds: so many standard errors hold 95 % of all means. 2 from 11 on.
_T = (12.7, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def seeds_needed(model: list[float], control: list[float]) -> float:
    """How many seeds until luck no longer explains the mean gap, if gap and spread stay."""
    gaps = [theirs - mine for mine, theirs in zip(model, control, strict=True)]
    spread, mean = statistics.stdev(gaps), abs(statistics.fmean(gaps))
    for seeds, t in enumerate(_T, start=2):
        if mean > t * spread / seeds**0.5:
            return seeds
    return math.ceil((2 * spread / mean) ** 2) if mean else math.inf


def decided(losses: Losses) -> int:
    """How many swaps changed the loss by more than luck."""
    return sum(
        verdict(nats, choices[next(iter(choices))]) != "too close"
        for choices in losses.values()
        for nats in list(choices.values())[1:]
    )


# ---------------------------------------------------------------- as published


def series_exp(x: float, terms: int = 19) -> float:
    """The exponential as 1 and the next terms of its series."""
    return sum(x**n / math.factorial(n) for n in range(terms + 1))


def published_swish(x: float) -> float:
    """x sigmoid(x), with the exponential by a series: right near 0."""
    return x / (1 + series_exp(-x))


class Switches(nn.Module):
    """A block with the original's switches: one is never read, and two end in an error as soon as
    it learns.

    Shapes   x (B,T,D) -> (B,T,D)
    """

    def __init__(self, d_model: int, rope=False, rmsnorm=False, swiglu=False, mask=False):
        super().__init__()
        self.rope, self.mask = Rotary(d_model) if rope else None, mask
        self.layer_norm = None if rmsnorm else nn.LayerNorm(d_model)
        self.rms_norm = NORMS["rms"](d_model) if rmsnorm else None
        self.gelu = None if swiglu else MLPS["gelu"](d_model)
        self.swiglu = MLPS["swiglu"](d_model, ratio=8 / 3) if swiglu else None

    def forward(self, x: Tensor) -> Tensor:
        y = (self.rms_norm or self.layer_norm)(x)
        table = causal_mask(x.shape[1], x.shape[1]) if self.mask else None
        y = F.scaled_dot_product_attention(y, y, y, table, is_causal=not self.mask)
        return (self.swiglu or self.gelu)(y)

    def learn(self, x: Tensor) -> None:
        """One step of training. It knows only the parts that were there before the switches."""
        self(x).square().mean().backward()
        for part in (self.layer_norm, self.gelu):
            for weight in part.parameters():
                weight.data -= 0.1 * weight.grad


def published_output(option: str | None) -> Tensor:
    """What the original's block says after one step, with one of its options or with none."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 12)
    block = Switches(12, **({option: True} if option else {}))
    block.learn(x)
    return block(x)


def our_output(option: str | None) -> Tensor:
    """What a model of the library says after one step, with the option or with none."""
    changes = {
        "rope": {"positions": "rotary"},
        "rmsnorm": {"norm": "rms"},
        "swiglu": {"mlp": ("swiglu", {"ratio": 8 / 3})},
    }
    spec = BASE.but(positions="none", norm="layer", norm_out="layer").but(**changes.get(option, {}))
    trainer = Trainer(spec, two_letter_text(), Recipe(steps=1, batch=1, window=16))
    list(trainer)
    ids = torch.arange(16)[None]
    documents = torch.zeros_like(ids) if option == "mask" else None  # one document: a causal mask
    with torch.no_grad():
        return trainer.model(ids, documents)


# ---------------------------------------------------------------- claims


@dataclass(frozen=True)
class Evidence:
    """What the tests look at.

    losses     of `train_swaps`
    learned    nats of a model with each norm at a rate that suits it, and of one that knows nothing
    output     what a model says after a step of training, with an option or with None
    """

    losses: Losses
    learned: Mapping[str, float]
    output: Callable[[str | None], Tensor] = published_output


def _both_norms(seen):
    nothing = seen.learned["nothing"]
    found = {name: seen.learned[name] for name in ("rms", "tanh")}
    learns = [nats < nothing - 0.05 for nats in found.values()]
    said = ", ".join(f"{name} {nats:.2f}" for name, nats in found.items())
    return holds_if(all(learns), IN_PART if any(learns) else DOES_NOT), (
        f"{said} nats, against {nothing:.2f} of one that knows only the last letter"
    )


# Each option, and whether it should change what is said: a mask that is written out should not.
_CHANGES = {"rope": True, "rmsnorm": True, "swiglu": True, "mask": False}


def _switches(seen):
    usual, said = seen.output(None), {}
    for option, wanted in _CHANGES.items():
        try:
            changed = not torch.allclose(seen.output(option), usual, atol=1e-6)
        except (TypeError, AttributeError):
            said[option] = "cannot be trained"
        else:
            said[option] = (
                "works" if changed == wanted else "has no effect" if wanted else "differs"
            )
    works = [word == "works" for word in said.values()]
    words = ", ".join(f"{option} {word}" for option, word in said.items())
    return holds_if(all(works), IN_PART if any(works) else DOES_NOT), words


def _improvements(seen):
    losses = seen.losses
    better = {
        "RMSNorm": verdict(losses["norm"]["rms"], losses["norm"]["layer"]),
        "RoPE": verdict(losses["positions"]["rotary"], losses["positions"]["learned"]),
        "SwiGLU": verdict(losses["mlp"]["swiglu"], losses["mlp"]["gelu"]),
    }
    ahead = [word == "ahead" for word in better.values()]
    said = ", ".join(f"{name} {word}" for name, word in better.items())
    return holds_if(all(ahead), IN_PART if any(ahead) else DOES_NOT), said


def _comments(seen):
    return UNTESTED, "takes its Go files, which are no part of this course"


CLAIMS = (
    Claim("L30", "RMSNorm and DynamicTanh are supported", _both_norms),
    Claim("L54", "RoPE, SwiGLU, RMSNorm, mask: switchable", _switches),
    Claim("L59", "30 to 50 % comments, no dependencies", _comments),
    Claim("L59b", "RMSNorm, RoPE and SwiGLU are better", _improvements),
)


# ---------------------------------------------------------------- scores by position


def scores(kind: str, T: int = 16, width: int = 8) -> Tensor:
    """Scores of one query at every place with one key at every place: (T,T), causal.

    The query and the key are the same vectors everywhere; only their places differ.
    """
    rng = torch.Generator().manual_seed(4)
    options = {"heads": 1, "buckets": 8, "distance": 16} if kind == "relative" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        positions = POSITIONS[kind](width, T, **options)
    q, k = torch.randn(2, 1, 1, width, generator=rng)
    with torch.no_grad():
        q, k = (positions.add(part.expand(1, T, width), 0)[:, None] for part in (q, k))
        table = positions.rotate(q, 0) @ positions.rotate(k, 0).transpose(2, 3) * width**-0.5
        bias = positions.bias(1, T, T)
        return (table + (0 if bias is None else bias))[0, 0]


@explorer(
    "In which of these does a score depend on the distance alone?",
    kind=choice("positions", list(POSITIONS)),
    query=slider("query at", [3, 7, 11, 15]),
)
def by_place(kind: str = "rotary", query: int = 15):
    """The scores of one query and one key by their places, and along one row."""
    table = scores(kind)
    T = len(table)
    moved = (table[1:, 1:] - table[:-1, :-1]).tril().abs().max().item()
    names = [str(t) for t in range(T)]
    seen = table.tril()
    alone = "depends on the distance alone" if moved < 1e-5 else "depends on the places themselves"
    row = [(query - j, table[query, j].item()) for j in range(query + 1)]
    title = f"scores with {kind} positions"
    return [
        Heat(title, seen.tolist(), names, names, said=f"{title}: the score {alone}"),
        Chart({f"query at {query}": row[::-1]}, "distance", "score", log=""),
        Note(f"The score {alone}", [f"Moved by one place, it changes by up to {moved:.3f}."]),
    ]
