"""Where norms are placed, and in which order a block applies its parts."""

import pytest
import torch
from torch import nn

from qllk.model.blocks import _NORMS_AT, Block, _CrossBlock


class Times(nn.Module):
    """A mixer that multiplies, and leaves the state alone."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x, state=None, mask=None):
        return self.factor * x, state


def thirds(width):
    """A norm that is easy to follow."""
    return type("Third", (nn.Module,), {"forward": lambda self, x: x / 3})()


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("pre", (1 + 6 / 3) * (1 + 2)),
        ("post", (1 + 6) / 3 * (1 + 6) / 3),
        ("sublayer", (1 + 6 / 3) * (1 + 6 / 3)),
    ],
)
def test_a_norm_stands_where_its_place_says(at, expected):
    mlp = type("Six", (nn.Module,), {"forward": lambda self, x: 6 * x})()
    block = Block(Times(6), mlp, thirds, 1, 0.0, _NORMS_AT[at])
    y, state = block(torch.ones(1, 1, 1), "kept")
    assert y.item() == pytest.approx(expected)
    assert state == "kept"


class Plus(Times):
    """A mixer that adds, so that it matters which part comes first."""

    def forward(self, x, state=None, mask=None):
        return x + self.factor, state


@pytest.mark.parametrize(
    ("at", "mixed", "looked", "thought"),
    [
        ("pre", 1 + 1 / 3 + 3, 52 / 9 + 9, 3),
        ("post", (1 + 4) / 3, (10 / 3 + 9) / 3, 7 / 3),
        ("sublayer", 1 + 4 / 3, 28 / 9 + 3, 3),
    ],
)
def test_a_cross_block_adds_mixer_memory_and_mlp_in_this_order(at, mixed, looked, thought):
    mlp = type("Six", (nn.Module,), {"forward": lambda self, x: 6 * x})()
    block = _CrossBlock(Plus(3), mlp, thirds, 1, 0.0, _NORMS_AT[at], cross=Plus(9))
    asked = []
    block.cross.register_forward_pre_hook(lambda part, args: asked.append(args[0].item()))
    y, state = block(torch.ones(1, 1, 1), ("mixer's", "memory's"))
    assert asked == [pytest.approx(mixed / 3 if at == "pre" else mixed)]
    assert y.item() == pytest.approx(looked * thought)
    assert state == ("mixer's", "memory's")


@pytest.mark.parametrize(
    ("at", "expected"), [("pre", 1 + 6 / 3), ("post", (1 + 6) / 3), ("sublayer", 1 + 6 / 3)]
)
def test_a_block_without_an_mlp_is_its_mixer_alone(at, expected):
    block = Block(Times(6), None, thirds, 1, 0.0, _NORMS_AT[at])
    y, state = block(torch.ones(1, 1, 1), "kept")
    assert y.item() == pytest.approx(expected)
    assert state == "kept"
    assert block.norm_mlp is None
