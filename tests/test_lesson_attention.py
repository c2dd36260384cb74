"""Lesson 01: what its widget shows, and answers that its checks can name no cause for."""

import itertools

import pytest
import torch
from helpers import same

from qllk.lab import check
from qllk.lab.exercise import WRONG_VALUES
from qllk.lab.lessons import attention, exercises
from qllk.model import kernels
from qllk.probes import measure
from qllk.study.figures import digest

each_setting = pytest.mark.parametrize(
    ("length", "mask", "sharpness"),
    list(itertools.product([2, 4, 8, 16], [True, False], [0.0, 1.0, 8.0])),
)


@each_setting
def test_every_row_of_the_map_shares_out_one(length, mask, sharpness):
    table = attention.attended(length, mask, sharpness)
    same(table.sum(dim=1), torch.ones(length, dtype=table.dtype))
    assert bool(table.triu(1).any()) is not mask


def test_the_map_is_of_the_lessons_own_weights():
    _, q, k = attention.tiny(attention.CHANNELS, attention.SEED, "q", "k")
    same(attention.attended(16, True, 1.0), exercises.attention.weights_loop(q, k)[0])


def test_without_sharpness_all_bytes_count_alike():
    past = kernels.causal_mask(16, 16).double()
    same(attention.attended(16, True, 0.0), past / past.sum(dim=1, keepdim=True))
    assert "47% of what it reads from the future" in digest(attention.look(16, False, 0.0))


@pytest.mark.parametrize("mask", [True, False])
def test_the_clock_counts_a_square_and_a_straight_line(mask):
    for name, wanted in (("table", 2), ("fused", 1)):
        lengths, counted = zip(*attention.clock(mask)[name][-4:], strict=True)
        assert measure.fit_exponent(lengths, counted).exponent == pytest.approx(wanted, abs=0.05)


def test_every_control_changes_the_picture():
    explorer = attention.look.widget()
    for name, control in explorer.controls.items():
        values, seen = getattr(control, "options", (False, True)), set()
        for value in values:
            control.value = value
            explorer.wait()
            seen.add(explorer.picture.value)
        assert len(seen) == len(values), name
        explorer.reset()
        explorer.wait()


def test_a_merge_that_overflows_is_refused_at_large_scores_alone():
    def overflows(o1, l1, o2, l2):
        a, b = l1.exp()[:, None], l2.exp()[:, None]
        return (a * o1 + b * o2) / (a + b), (a + b).log()[:, 0]

    verdict = check.attention.merge.judge(overflows)
    assert verdict.state == WRONG_VALUES
    assert "got nan" in verdict.cause
