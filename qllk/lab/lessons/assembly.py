"""Lesson 08, Assemble the model."""

from __future__ import annotations

import math
import re
import statistics
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
from ...text import objectives, windows
from ..explore import choice, explorer, slider
from ..minimize import minimize

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


def work(model, T: int) -> float:
    """Operations for each byte of a text of T bytes."""
    ids = torch.zeros(1, T, dtype=torch.long)
    with torch.no_grad():
        return measure.count_flops(lambda: model(ids)) / T


def next_patch_loss(logits, ids, size: int = 8):
    """The published models' loss without their leak: each patch has to tell the next one.

    Shapes   logits (B,T,256), ids (B,T), T a multiple of `size`  ->  one number
    """
    return objectives.token_losses(logits[:, :-size], ids[:, size:]).mean()


def hashing_trial(text, seed: int, steps: int, hashing: bool) -> float:
    """Train a small 1.1 with or without its "hashing"; the loss on what is held out of a corpus.

    With the same seed both start from the same weights and read the same bytes.
    """
    torch.manual_seed(seed)
    model = published.QLLK11(dim=64, n_layers=2)
    if not hashing:
        model.hash_proj.requires_grad_(False).zero_()

    def loss_of(step):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        ids = windows.sample_windows(text.train, 8, 256, generator)[:, :256].long()
        return next_patch_loss(model(ids), ids)

    minimize(model, loss_of, steps, lr=3e-3)
    held_out = torch.from_numpy(text.valid[: 1 << 14].copy()).long().view(-1, 256)
    with torch.no_grad():
        return next_patch_loss(model(held_out), held_out).item()


def paired(before: list[float], after: list[float]) -> tuple[float, float, float]:
    """Mean difference of pairs, its standard error, and how far the pairs' firsts are apart."""
    gaps = [b - a for a, b in zip(before, after, strict=True)]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    return statistics.mean(gaps), error, statistics.stdev(before)


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


def gradient_sizes(model, ids, rule: Callable) -> list[tuple[int, float]]:
    """(layer, norm of the loss's gradient) at each of `layer_by_layer`'s tensors."""
    xs, logits = layer_by_layer(model, ids, rule)
    found = torch.autograd.grad(next_patch_loss(logits, ids, model.patch_size), xs)
    return [(layer, gradient.norm().item()) for layer, gradient in enumerate(found)]


def input_left(model, ids, rule: Callable) -> list[tuple[int, float]]:
    """(layer, how much it still points where the input does) for `layer_by_layer`'s tensors.

    The cosine of the angle, averaged over the places; what all places have in common is taken off.
    """
    with torch.no_grad():
        xs = layer_by_layer(model, ids, rule)[0]
    xs = [x - x.mean(dim=(0, 1)) for x in xs]
    cosines = [torch.cosine_similarity(xs[0], x, dim=-1).mean().item() for x in xs]
    return list(enumerate(cosines))


def last_loss(rule: Callable, depth: int, ids, steps: int = 30) -> float:
    """Train a narrow 1.0 with `depth` layers, applied by `rule`, on one batch; the last loss.

    All rules start from the same weights.
    """
    torch.manual_seed(7)
    model = published.QLLK10(dim=64, n_layers=depth)

    def loss_of(step):
        return next_patch_loss(layer_by_layer(model, ids, rule)[1], ids)

    return minimize(model, loss_of, steps)[-1]


def frequency_loss(ids) -> float:
    """The entropy of these bytes' own frequencies, in nats per byte."""
    share = ids.flatten().bincount().double() / ids.numel()
    return -torch.special.xlogy(share, share).sum().item()


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
