"""Lesson 08, Assemble the model."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import torch

from ... import probes
from ...model import families
from ...presets import CONV, FADING_SUM, PRESETS
from ...probes import measure
from ...spec import Patch, Spec
from ...study import published
from ...study.axes import BLUE, ORANGE
from ...study.figures import Bars, Box, Diagram, Heat
from ...text import objectives
from ..explore import choice, explorer, slider
from ..minimize import minimize
from ..show import TEXT, letters_of
from .exercises.assembly import spec_of, weights_for_model

__all__ = ["spec_of", "weights_for_model"]

# Which part a parameter belongs to, by its name; the first that fits.
_PARTS = (
    ("norms", r"norm|layers\.\d+\.[15]\."),
    ("embedding", r"embed|segments|positions"),
    ("hashing", r"hash_proj|ngrams|recall"),
    ("patches", r"patch_|fold"),
    ("mixers", r"\.(mix|cross|kernel)\.|layers\.\d+\.0\."),
    ("MLPs", r"mlp|layers\.\d+\.[24]\."),
    ("head", r"head"),
)
_ORDER = ("embedding", "hashing", "patches", "mixers", "MLPs", "norms", "head")

_NANO = PRESETS["qllk-3-nano"]


# ---------------------------------------------------------------- pictures


def whole_model(spec: Spec = _NANO) -> Diagram:
    """qllk-3 from the bytes to the logits."""
    ngrams, recall = len(spec.ngrams.contexts), len(spec.recall.contexts)
    head = 5.4 + 0.9 * spec.layers
    boxes = {
        "bytes": Box("bytes", 0, 1, 0.7),
        "embed": Box(f"embedding\n{spec.vocab_size} rows", 1.1, 0, 1.6),
        "ngrams": Box(f"n-grams: {ngrams} x\n{spec.ngrams.rows:,} rows", 1.1, 1, 1.6),
        "recall": Box(f"recall: {2 * recall} x\n{spec.recall.rows:,} rows", 1.1, 2, 1.6, ORANGE),
        "sum": Box("+", 3.1, 1, 0.4),
        **{
            f"block {i}": Box(f"block {i}", 3.9 + 0.9 * i, 1, 0.7, BLUE) for i in range(spec.layers)
        },
        "norm": Box("norm", head - 1.3, 1, 0.6),
        "head": Box("head", head - 0.3, 1, 0.7),
        "strength": Box("votes", head - 0.3, 2, 0.7, ORANGE),
        "total": Box("+", head + 0.8, 1, 0.4),
        "logits": Box(f"{spec.vocab_size}\nlogits", head + 1.6, 1, 0.8),
    }
    line = ["sum", *(f"block {i}" for i in range(spec.layers)), "norm"]
    arrows = [("bytes", part) for part in ("embed", "ngrams", "recall")]
    arrows += [(part, "sum") for part in ("embed", "ngrams", "recall")]
    arrows += [*pairwise(line), ("norm", "head"), ("norm", "strength"), ("recall", "strength")]
    arrows += [("head", "total"), ("strength", "total"), ("total", "logits")]
    return Diagram(f"qllk-3, {spec.d_model} wide", boxes, arrows)


def residual_stream(blocks: int = 2) -> Diagram:
    """What runs past the parts of the blocks, and what they add to it."""
    boxes, arrows, last = {"x": Box("x", 0, 0, 0.6)}, [], "x"
    for i in range(2 * blocks):
        part, total, column = f"part {i}", f"sum {i}", 1.9 * i
        words = "norm\n" + ("MLP" if i % 2 else "byte mixer")
        boxes[part] = Box(words, column + 0.7, 1, 1.1, BLUE)
        boxes[total] = Box("+", column + 1.9, 0, 0.6)
        arrows += [(last, part), (last, total), (part, total)]
        last = total
    title = f"the residual stream through {blocks} blocks"
    return Diagram(title, boxes, arrows, f"{title}: x and {2 * blocks} parts, each added to it.")


def reach(text: bytes = TEXT + b" " + TEXT) -> Heat:
    """Which bytes the last output depends on, with some parts of qllk-3-nano and others left out.

    The rows of the tables are random, since those of a new model are all zero.
    """
    local = _NANO.but(ngrams=None, recall=None)
    specs = {
        "one byte layer": local.but(layers=1),
        "two byte layers": local,
        "two, and n-grams": _NANO.but(recall=None),
        "two, and recall": _NANO.but(ngrams=None),
        "a running sum": local.but(layers=1, mixers=(("cumsum", {}),)),
    }
    seen, ids = {}, torch.tensor([list(text)])
    for name, spec in specs.items():
        model = families.build(spec, seed=0).double()
        for part in filter(None, (model.ngrams, model.recall)):
            torch.nn.init.normal_(part.table.weight)
        seen[name] = probes.positions_seen(model, len(text) - 1, len(text), ids).int().tolist()
    counts = ", ".join(f"{name} {sum(row)}" for name, row in seen.items())
    title = f"what the last of {len(text)} outputs depends on"
    letters = letters_of(text)
    return Heat(title, [*seen.values()], [*seen], letters, said=f"{title}: {counts}.")


# ---------------------------------------------------------------- measurements


def parts(model) -> dict[str, int]:
    """How many parameters each part of a model holds, published or built; none left out."""
    found = dict.fromkeys(_ORDER, 0)
    for name, parameter in model.named_parameters():
        found[next(part for part, names in _PARTS if re.search(names, name))] += parameter.numel()
    return found


def part_bars(name: str, model) -> Bars:
    """The same as a picture."""
    found = parts(model)
    thousands = {part: n / 1e3 for part, n in found.items() if n}
    return Bars(f"{name}: {sum(found.values()):,} parameters", thousands, "thousand")


def next_patch_loss(logits, ids, size: int = 8):
    """The published models' loss without their leak: each patch has to tell the next one.

    Shapes   logits (B,T,256), ids (B,T), T a multiple of `size`  ->  one number
    """
    return objectives.token_losses(logits[:, :-size], ids[:, size:]).mean()


def layer_by_layer(model, ids, rule: Callable):
    """QLLK 1.0 with its layers applied by `rule(layer, x)`: what enters each layer, and the logits.

    Shapes   ids (B,T)  ->  a list of n_layers + 1 tensors (B,P,D), the last leaves the last layer;
             logits (B,T,256)
    """
    x = published.patch_means(model.byte_embedding(ids), model.patch_size)
    xs = [x + torch.tanh(x @ model.hash_proj)]
    for layer in model.layers:
        xs.append(rule(layer, xs[-1]))
    return xs, published.logits_in_place(model.decoder_head(xs[-1]))


def last_loss(rule: Callable, depth: int, ids, seed: int, steps: int = 30) -> float:
    """Train a narrow 1.0 with `depth` layers, applied by `rule`, on one batch; the last loss.

    With the same seed, all rules start from the same weights.
    """
    torch.manual_seed(seed)
    model = published.QLLK10(dim=64, n_layers=depth)

    def loss_of(step):
        return next_patch_loss(layer_by_layer(model, ids, rule)[1], ids)

    return minimize(model, loss_of, steps)[-1]


# ---------------------------------------------------------------- widget

_BYTES = 256  # so long is the text that the widget counts with
MIXERS = {
    "cumulative sum": FADING_SUM,
    "convolution": CONV,
    "linear attention": ("linear", {"heads": 4}),
    "softmax attention": ("softmax", {"heads": 4}),
}
SIZES = {
    f"{width} wide, {layers} layers": (width, layers)
    for width in (32, 64, 128)
    for layers in (2, 4)
}


def assembled(mixer, mlp, patch, size) -> Spec:
    """qllk-2 with other parts: always three byte layers, and the chosen mixer on the slow clock.

    Without patches the same layers stand in the same order, all of them on bytes.
    """
    width, layers = SIZES[size]
    part, common = MIXERS[mixer], {"d_model": width, "mlp": ("relu2", {"ratio": mlp})}
    if patch == "none":
        return Spec(layers=3 + layers, mixers=(CONV, *(part,) * layers, CONV, CONV), **common)
    slow = Patch(size=patch, d_model=width, layers=layers, mixers=(part,), after=2)
    return Spec(layers=3, mixers=(CONV,), patch=slow, **common)


@lru_cache
def counts(spec: str) -> tuple[Bars, float, int]:
    """Parameters by part, operations for a byte, numbers in the state."""
    model, held = families.build(PRESETS[spec] if spec in PRESETS else Spec.from_json(spec)), []
    ids = torch.zeros(1, _BYTES, dtype=torch.long)
    with torch.no_grad():
        operations = measure.count_flops(lambda: held.append(model.run(ids)[1]))
    return part_bars("this model", model), operations / _BYTES, probes.state_numbers(held)


@explorer(
    "Which exchange adds parameters and yet takes work away?",
    mixer=choice("slow mixer", list(MIXERS)),
    mlp=slider("MLP ratio", [1, 2, 4]),
    patch=slider("patch", ["none", 4, 8, 16]),
    size=slider("size", list(SIZES)),
)
def boxed(mixer="cumulative sum", mlp=4, patch=8, size="128 wide, 2 layers"):
    """Parameters by part, operations per byte and state size, compared with qllk-2."""
    held, operations, state = counts(assembled(mixer, mlp, patch, size).to_json())
    _, known_operations, known_state = counts("qllk-2")
    return [
        held,
        Bars(
            f"operations for one byte of {_BYTES:,}",
            {"this model": operations / 1e6, "qllk-2": known_operations / 1e6},
            "million",
        ),
        Bars(
            f"numbers carried along after {_BYTES:,} bytes",
            {"this model": state / 1e3, "qllk-2": known_state / 1e3},
            "thousand",
        ),
    ]
