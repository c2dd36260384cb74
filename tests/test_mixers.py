"""Folding, and that every option of a mixer makes a difference."""

import pytest
import torch
from helpers import same, vectors

from qllk.checks import build_part
from qllk.model.attention import (
    SoftmaxAttention,
)
from qllk.model.mixers import MIXERS, FoldedMixer
from qllk.probes.measure import count_flops


def test_folding_computes_its_formula():
    mixer, x = FoldedMixer(4, size=2, mixer=("softmax", {"heads": 1})).double(), vectors(1, 5, 4)
    path = mixer.path
    folds = torch.stack((x[0, 0:2].flatten(), x[0, 2:4].flatten())) @ path.fold.weight.T
    hints = (path.trunk(folds[None])[0][0] @ path.unfold.weight.T).view(4, 4)
    hints = torch.cat((torch.zeros(1, 4).double(), hints))  # the first speaks to the step after it
    same(mixer(x)[0][0], x[0] @ mixer.out.weight.T + hints)


@pytest.mark.parametrize("size", [2, 4])
def test_folding_divides_the_pairs_of_attention_by_its_square(size):
    softmax = ("softmax", {"heads": 1})

    def pairs(mixer):
        """What is left of the operations when everything that is linear in length is taken off."""
        short, long = (count_flops(lambda T=T: mixer(torch.randn(1, T, 4))) for T in (64, 128))
        return long - 2 * short

    assert pairs(SoftmaxAttention(4, heads=1)) == size**2 * pairs(
        FoldedMixer(4, size=size, mixer=softmax)
    )


LATENT = {"d_latent": 5, "d_nope": 3, "d_rope": 2, "d_value": 4}


@pytest.mark.parametrize(
    ("name", "base", "change"),
    [
        ("softmax", {"heads": 2}, {"heads": 4}),
        ("softmax", {"heads": 2}, {"window": 5}),
        ("softmax", {"heads": 2, "window": 5}, {"sinks": 1}),
        ("retention", {"heads": 2}, {"heads": 4}),
        ("linear-2020", {"heads": 2}, {"heads": 4}),
        ("mingru", {}, {"expand": 1.5}),
        ("mamba", {"rank": 2}, {"states": 3}),
        ("mamba", {}, {"width": 2}),
        ("mamba2", {"heads": 2, "states": 3}, {"heads": 4}),
        ("linformer", {"heads": 2, "block": 4, "slots": 2}, {"block": 5}),
        ("linformer", {"heads": 2, "block": 4, "slots": 2}, {"slots": 1}),
        ("latent", {"heads": 2, **LATENT}, {"d_query": 3}),
        ("latent", {"heads": 2, **LATENT}, {"norm": "layer"}),
        ("linear", {"heads": 2}, {"decay": "fixed"}),
        ("delta", {"heads": 2}, {"decay": "fixed"}),
        ("cumsum", {}, {"half_lives": (2, 9)}),
        ("cumsum", {}, {"normaliser": "count"}),
        (
            "folded",
            {"size": 2, "mixer": ("cumsum", {})},
            {"mixer": ("cumsum", {"normaliser": "root"})},
        ),
    ],
)
def test_an_option_changes_the_output_with_the_same_weights(name, base, change):
    x, outputs = vectors(1, 20, 8), []
    for options in (base, {**base, **change}):
        torch.manual_seed(0)
        outputs.append(build_part(MIXERS, (name, options), "mixer", (8,)).double()(x)[0])
    assert not torch.allclose(*outputs)
