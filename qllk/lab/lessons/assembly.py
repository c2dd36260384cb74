"""Lesson 07, Assemble the model."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import nn

from ... import probes
from ...model import families, layers, mixers
from ...model.blocks import Block
from ...presets import CONV, FADING_SUM, PRESETS
from ...probes import measure
from ...spec import Patch, Spec
from ...study import published
from ...study.figures import Bars
from ...text import objectives, windows
from ..check import SEES_THE_FUTURE, WRONG_VALUES, Case, Exercise, Mistake
from ..explore import Explorer, choice, slider

# Which part a parameter belongs to, by its name; the first that fits.
PARTS = (
    ("norms", r"norm|layers\.\d+\.[15]\."),
    ("embedding", r"embed|segments|positions"),
    ("hashing", r"hash_proj"),
    ("patches", r"patch_|fold"),
    ("mixers", r"\.(mix|cross|kernel)\.|layers\.\d+\.0\."),
    ("MLPs", r"mlp|layers\.\d+\.[24]\."),
    ("head", r"head"),
)
ORDER = ("embedding", "hashing", "patches", "mixers", "MLPs", "norms", "head")


# ---------------------------------------------------------------- measurements


def parts(model) -> dict[str, int]:
    """How many parameters each part of a model holds, published or built; none left out."""
    found = dict.fromkeys(ORDER, 0)
    for name, parameter in model.named_parameters():
        found[next(part for part, names in PARTS if re.search(names, name))] += parameter.numel()
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


def learn(model, loss_of, steps: int, lr: float = 1e-3) -> list[float]:
    """Take so many steps down the gradient of `loss_of(step)`; the loss before each."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.Adam(trained, lr=lr), []
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


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

    learn(model, loss_of, steps, lr=3e-3)
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
    """Train a narrow 1.0 of so many layers, applied by `rule`, on one batch; the last loss.

    All rules start from the same weights.
    """
    torch.manual_seed(7)
    model = published.QLLK10(dim=64, n_layers=depth)

    def loss_of(step):
        return next_patch_loss(layer_by_layer(model, ids, rule)[1], ids)

    return learn(model, loss_of, steps)[-1]


def frequency_loss(ids) -> float:
    """What these bytes cost whoever knows nothing but how often each occurs among them."""
    share = ids.flatten().bincount().double() / ids.numel()
    return -torch.special.xlogy(share, share).sum().item()


# ---------------------------------------------------------------- exercises


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


def counted(d_model, ratio):
    with torch.device("meta"):
        mixer, mlp = mixers.CumsumMixer(d_model), layers.SquaredReluMLP(d_model, ratio=ratio)
        return families.count_parameters(Block(mixer, mlp, nn.RMSNorm, d_model, 0.0))


def block_loop(x, mix, mlp, norm):
    """The definition, written out: two sums, each of what was there and what a part adds."""
    mixed = mix(norm(x))
    middle = torch.stack([x[:, t] + mixed[:, t] for t in range(x.shape[1])], dim=1)
    thought = mlp(norm(middle))
    return torch.stack([middle[:, t] + thought[:, t] for t in range(x.shape[1])], dim=1)


def past_mean(x):
    """The mean of all so far: the plainest causal mixer."""
    return x.cumsum(dim=1) / torch.arange(1, x.shape[1] + 1)[:, None]


def squared_relu(x):
    return x.relu().square()


def unit_size(x):
    return nn.functional.rms_norm(x, x.shape[-1:])


def blocks(rng):
    for B, T, D in ((2, 5, 3), (1, 1, 4), (3, 11, 2), (1, 16, 4)):
        x = 3 * torch.randn(B, T, D, generator=rng, dtype=torch.float64)
        yield Case((x, past_mean, squared_relu, unit_size))


def widths(rng):
    for d_model, ratio in ((8, 4), (3, 1), (128, 4), (5, 2), (256, 3)):
        yield Case((d_model, ratio))


def vocabularies(rng):
    for symbols in (256, 2, 10, 50257):
        yield Case((symbols,))


EXERCISES = (
    Exercise(
        name="assembly.parameters",
        difficulty=2,
        minutes=8,
        answer=parameters,
        truth=counted,
        cases=widths,
        hints=(
            "A linear layer from m to n numbers without a bias holds m times n.",
            "The mixer has one layer that is four times as wide, and an output projection.",
            "Each of the two norms has one scale for each channel.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "The mixer's output projection is missing.",
                lambda d_model, ratio: parameters(d_model, ratio) - d_model**2,
            ),
            Mistake(
                WRONG_VALUES,
                "The MLP goes up and comes down again: two matrices.",
                lambda d_model, ratio: parameters(d_model, ratio) - ratio * d_model**2,
            ),
            Mistake(
                WRONG_VALUES,
                "The norms hold numbers too.",
                lambda d_model, ratio: (5 + 2 * ratio) * d_model**2,
            ),
            Mistake(
                WRONG_VALUES,
                "These linear layers have no bias.",
                lambda d_model, ratio: parameters(d_model, ratio) + (6 + ratio) * d_model,
            ),
        ),
    ),
    Exercise(
        name="assembly.block",
        difficulty=2,
        minutes=8,
        answer=block,
        truth=block_loop,
        cases=blocks,
        hints=(
            "There are two sums, and the second starts from the result of the first.",
            "A norm stands before each part, never on the skip itself.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "The MLP's output has replaced x: its skip is missing.",
                lambda x, mix, mlp, norm: mlp(norm(x + mix(norm(x)))),
            ),
            Mistake(
                WRONG_VALUES,
                "Here the norms stand after the sums, so the skip is normed as well.",
                lambda x, mix, mlp, norm: norm(norm(x + mix(x)) + mlp(norm(x + mix(x)))),
            ),
            Mistake(
                WRONG_VALUES,
                "The skip starts from the normed x; it should carry x itself.",
                lambda x, mix, mlp, norm: block(norm(x), mix, mlp, norm),
            ),
            Mistake(
                WRONG_VALUES,
                "The MLP read what was there before the mixing.",
                lambda x, mix, mlp, norm: x + mix(norm(x)) + mlp(norm(x)),
            ),
            Mistake(
                SEES_THE_FUTURE,
                "The norm went over time, not over the channels.",
                lambda x, mix, mlp, norm: block(
                    x, mix, mlp, lambda y: norm(y.transpose(1, 2)).transpose(1, 2)
                ),
            ),
        ),
        time_axis=1,
    ),
    Exercise(
        name="assembly.first_loss",
        difficulty=1,
        minutes=4,
        answer=first_loss,
        cases=vocabularies,
        hints=(
            "Each symbol gets the chance one in so many.",
            "The loss of a byte is minus the natural logarithm of the chance it was given.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "Those are bits; nats were wanted.",
                lambda symbols: math.log2(symbols),
            ),
            Mistake(WRONG_VALUES, "That is the chance itself.", lambda symbols: 1 / symbols),
            Mistake(
                WRONG_VALUES,
                "A loss is minus the logarithm of the chance, so never negative.",
                lambda symbols: -math.log(symbols),
            ),
        ),
    ),
)


# ---------------------------------------------------------------- widget

BYTES = 256  # so long is the text that the widget counts with
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
    ids = torch.zeros(1, BYTES, dtype=torch.long)
    with torch.no_grad():
        operations = measure.count_flops(lambda: held.append(model.run(ids)[1]))
    return part_bars("this model", model), operations / BYTES, probes.state_numbers(held)


def boxed(mixer="cumulative sum", mlp=4, patch=8, size="128 wide, 2 layers"):
    """What is in the box: parameters by part, work for a byte, and state, beside qllk-2."""
    held, operations, state = counts(assembled(mixer, mlp, patch, size).to_json())
    _, known_operations, known_state = counts("qllk-2")
    return [
        held,
        Bars(
            f"operations for one byte of {BYTES:,}",
            {"this model": operations / 1e6, "qllk-2": known_operations / 1e6},
            "million",
        ),
        Bars(
            f"numbers carried along after {BYTES:,} bytes",
            {"this model": state / 1e3, "qllk-2": known_state / 1e3},
            "thousand",
        ),
    ]


def widget() -> Explorer:
    """Exchange the parts of qllk-2 and see what that costs."""
    return Explorer(
        "Which exchange adds parameters and yet takes work away?",
        {
            "mixer": choice("slow mixer", list(MIXERS)),
            "mlp": slider("MLP ratio", [1, 2, 4], 4),
            "patch": slider("patch", ["none", 4, 8, 16], 8),
            "size": slider("size", list(SIZES), "128 wide, 2 layers"),
        },
        boxed,
    )
