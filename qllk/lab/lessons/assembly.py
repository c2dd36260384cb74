"""Lesson 08, Assemble the model."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

import torch

from ... import probes
from ...model import families
from ...presets import CONV, FADING_SUM, PRESETS
from ...probes import measure
from ...spec import Patch, Spec
from ...study import published
from ...study.figures import Bars
from ...text import objectives
from ..explore import choice, explorer, slider
from ..minimize import minimize
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


def last_loss(rule: Callable, depth: int, ids, steps: int = 30) -> float:
    """Train a narrow 1.0 with `depth` layers, applied by `rule`, on one batch; the last loss.

    All rules start from the same weights.
    """
    torch.manual_seed(7)
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
