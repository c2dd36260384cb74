"""Position encodings: angles, waves, tables, buckets of distances."""

import math

import pytest
import torch
from helpers import same, vectors

from qllk.model.attention import (
    SoftmaxAttention,
)
from qllk.model.positions import (
    BidirectionalRelative,
    Learned,
    NoPositions,
    Relative,
    Rotary,
    Sinusoidal,
)


@pytest.mark.parametrize("shift", [1, 7, 100_000])
def test_rotary_scores_depend_only_on_distance(shift):
    rotary, q, k = Rotary(8), vectors(1, 1, 5, 8), vectors(1, 1, 5, 8)
    here = rotary.rotate(q, 0) @ rotary.rotate(k, 0).mT
    there = rotary.rotate(q, shift) @ rotary.rotate(k, shift).mT
    same(here, there, atol=1e-9)
    assert not torch.allclose(here, q @ k.mT)


def test_rotations_keep_lengths_and_add_up():
    rotary, x = Rotary(8), vectors(1, 1, 1, 8)
    same(rotary.rotate(x, 9).norm(), x.norm())
    same(rotary.rotate(rotary.rotate(x, 4), 5), rotary.rotate(x, 9))
    same(rotary.rotate(x, 0), x)


def test_rotary_rotates_the_first_pair_by_one_radian_a_step():
    x = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(1, 1, 3, 4)
    turned = Rotary(4).rotate(x, 2)
    same(turned[0, 0, :, 0], torch.tensor([2.0, 3, 4], dtype=torch.float64).cos())
    same(turned[0, 0, :, 2], torch.tensor([2.0, 3, 4], dtype=torch.float64).sin())


def test_sinusoidal_positions_are_the_published_waves():
    added = Sinusoidal(4).add(torch.zeros(1, 2, 4, dtype=torch.float64), t0=3)
    for i, t in enumerate((3, 4)):
        slow = t / 10_000**0.5
        expected = [math.sin(t), math.sin(slow), math.cos(t), math.cos(slow)]
        assert added[0, i].tolist() == pytest.approx(expected)


def test_learned_positions_add_the_row_of_their_place():
    learned, x = Learned(3, context=9), torch.zeros(2, 2, 3)
    same(learned.add(x, t0=4), learned.table.weight[4:6].expand(2, 2, 3))


def test_positions_either_add_or_rotate():
    x = vectors(1, 2, 3, 4)
    for positions in (NoPositions(4), Learned(4, context=9), Sinusoidal(4)):
        assert positions.rotate(x, 5) is x
    for positions in (NoPositions(4), Rotary(4)):
        same(positions.add(x[0], 5), x[0], atol=0)


def test_a_scaling_divides_the_angles_of_rotary_positions():
    x = vectors(1, 1, 4, 8).expand(1, 1, 4, 8)
    slow, rotary = Rotary(8, scaling=3.0), Rotary(8)
    same(
        slow.rotate(x, 6)[:, :, ::3],
        torch.cat([rotary.rotate(x[:, :, i : i + 1], 2 + i // 3) for i in (0, 3)], 2),
    )


def test_rotary_positions_refuse_a_scaling_of_zero():
    with pytest.raises(ValueError, match="scaling of rotary positions must be above 0, got 0"):
        Rotary(8, scaling=0)


def test_relative_buckets_hold_one_distance_each_and_then_ever_more():
    ahead = -torch.arange(24)
    found = Relative(8, heads=1, buckets=8, distance=20).bucket(ahead, 8).tolist()
    assert found[:5] == [0, 1, 2, 3, 4]
    assert found[4:20] == sorted(found[4:20])
    assert set(found) == set(range(8))
    assert found[20:] == [7] * 4


def test_a_decoders_relative_buckets_do_not_tell_the_future_apart():
    relative = Relative(8, heads=1, buckets=8, distance=20)
    assert relative.bucket(torch.arange(5), 8).tolist() == [0] * 5


def test_an_encoders_relative_buckets_are_half_for_each_direction():
    relative = BidirectionalRelative(8, heads=1, buckets=8, distance=20)
    assert relative.bucket(torch.tensor([-30, -1, 0, 1, 30]), 8).tolist() == [3, 1, 0, 5, 7]


@pytest.mark.parametrize("kind", [Relative, BidirectionalRelative])
def test_a_relative_bias_is_read_from_the_table_by_head_and_distance(kind):
    relative = kind(8, heads=2, buckets=8, distance=20)
    bias = relative.bias(2, 3, 7)
    assert bias.shape == (2, 3, 7)
    same(bias, relative.bias(2, 7, 7)[:, 4:], atol=0)
    same(bias[:, 1, 3], relative.table.weight[2], atol=0)  # the query at place 5, two back


def test_relative_positions_refuse_what_does_not_fit():
    with pytest.raises(
        ValueError, match=r"the same number of heads, got heads=2 .* heads=4 for a mixer"
    ):
        SoftmaxAttention(8, Relative(8, heads=2), heads=4)(torch.zeros(1, 2, 8))
    for sizes in ({"buckets": 2}, {"buckets": 8, "distance": 8}):
        with pytest.raises(ValueError, match="at least 4 buckets and a distance above their num"):
            Relative(8, heads=2, **sizes)
