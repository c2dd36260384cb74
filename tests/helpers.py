"""Shared by several test files: tiny versions of the presets, and exact comparison."""

from dataclasses import replace

import pytest
import torch

from qllk.model.families import build
from qllk.model.inputs import Lookup
from qllk.presets import PRESETS
from qllk.spec import Part, Patch, Spec
from qllk.training import devices

# The smallest model with all parts of qllk-2, plus dropout.
CONV = ("conv", {"width": 3})
SPEC = Spec(
    d_model=8,
    layers=2,
    mixers=(CONV,),
    patch=Patch(size=4, d_model=8, layers=1, mixers=(("cumsum", {}),)),
    dropout=0.1,
)
BFLOAT16 = pytest.mark.skipif(
    devices._unavailable_reason("cpu", "bfloat16") is not None, reason="needs bfloat16 on the CPU"
)
SMALL = {  # upper bounds of the options that cost time
    **{"heads": 2, "window": 5, "sinks": 2, "width": 3, "ratio": 2, "rank": 3},
    **{"states": 3, "block": 4, "slots": 2},
    **{"d_latent": 6, "d_nope": 4, "d_rope": 4, "d_value": 4},
}


def tiny_part(part: Part) -> Part:
    name, options = part
    return name, {k: min(v, SMALL[k]) if v and k in SMALL else v for k, v in options.items()}


def tiny(spec: Spec) -> Spec:
    """The same structure in small, with every mixer of the spec at least once."""
    mixers, patch = tuple(map(tiny_part, spec.mixers)), spec.patch
    needed = max(2, len(mixers))
    if patch:
        slow = tuple(map(tiny_part, patch.mixers))
        patch = replace(
            patch,
            size=min(patch.size, 4),
            d_model=24,
            layers=min(patch.layers, max(2, len(slow))),
            mixers=slow,
            after=min(patch.after, 1),
        )
    return spec.but(
        d_model=16,
        layers=min(spec.layers, needed),
        mixers=mixers,
        mlp=tiny_part(spec.mlp),
        positions=tiny_part(spec.positions),
        cross=spec.cross and tiny_part(spec.cross),
        context=spec.context and 80,
        vocab_size=min(spec.vocab_size, 256),
        patch=patch,
        ngrams=spec.ngrams and replace(spec.ngrams, rows=64),
        recall=spec.recall and replace(spec.recall, addresses=32, rows=64),
    )


class Reading(torch.nn.Module):
    """An encoder-decoder with a fixed source, which makes it a causal model like all others."""

    def __init__(self, model):
        super().__init__()
        self.model, self.embed, self.spec = model, model.embed, model.spec
        self.register_buffer("source", torch.arange(11)[None])

    def run(self, ids, state=None):
        return self.model.run(ids, state or self.model.encode(self.source.expand(len(ids), -1)))

    def forward(self, ids):
        return self.run(ids)[0]


def built(spec):
    """The model of a spec, wrapped if needed so that it maps ids to logits.

    Tables start at zero, and what is read from them would not be seen: they are filled here.
    """
    model = build(spec, seed=0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Lookup):
                module.weight.normal_(generator=torch.Generator().manual_seed(1))
    return Reading(model) if spec.family == "encoder-decoder" else model


TINY = {name: tiny(spec) for name, spec in PRESETS.items()}


def same(actual, expected, atol=1e-10):
    """Assert equal shape, dtype and values, within `atol` and without relative tolerance."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def vectors(*shape):
    """Random numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64)


def facts(path):
    """What differs once a file was written or replaced; reading changes only its access time."""
    found = path.lstat()
    return found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns


# The function that draws each lesson's widget; "training" shows the live trainer instead.
DRAWN = {
    "addresses": "meet",
    "assembly": "boxed",
    "attention": "look",
    "cumsum": "watch",
    "forgetting": "left",
    "cutting": "pieces",
    "fusing": "projections",
    "growth": "grown",
    "linear": "race_orders",
    "parts": "by_place",
    "patches": "xray",
    "race": "live",
    "shapes": "look",
    "tiles": "walk",
    "windows": "reach",
    "writing": "play",
}
