"""Lesson 04: what its widget shows, and the truth of its exercise."""

import itertools

import pytest
import torch

from qllk.lab.lessons import exercises, growth
from qllk.lab.pictures.charts import page_html
from qllk.model import kernels, recurrent


def page(**changes):
    return growth.grown(**{"precision": "float32", "steps": 64, **changes})


def ends(page):
    return {name: pairs[-1][1] for name, pairs in page[0].lines.items()}


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)])
@pytest.mark.parametrize("step", [1.0, 4.0, 0.5])
def test_the_truth_of_stall_is_what_torch_does(dtype, bits, step):
    terms = torch.full((1, 2**bits + 5, 1), step, dtype=dtype)
    assert kernels.running_sum_loop(terms)[1].item() == exercises.growth.stall_loop(bits, step)


def test_dividing_by_powers_is_right_until_they_run_out():
    verdict = exercises.growth.EXERCISES[1].judge(exercises.growth.by_quotients)
    assert verdict.state == "right when short, wrong when long"


def test_bfloat16_stalls_at_256_and_float16_at_2048():
    for precision, stop in (("bfloat16", 256), ("float16", 2048)):
        chart, note = growth.grown(precision=precision)
        assert chart.lines["kept"][-1] == (4096, stop)
        assert f"not moved since step {stop:,}" in note.digest


def test_large_terms_overflow_float16_alone():
    for precision, said in (("float16", "overflows at step"), ("bfloat16", "not moved since")):
        assert said in growth.grown("constant, 100", precision=precision)[1].digest


def test_in_float64_the_sum_grows_as_root_or_line_and_decay_bounds_it():
    def at_end(**changes):
        return ends(growth.grown(precision="float32", **changes))["in float64"]

    assert at_end(kind="constant") == pytest.approx(4096)
    assert at_end(kind="random") == pytest.approx(64, rel=0.3)
    assert at_end(kind="constant", half_life=4) == pytest.approx(1 / (1 - 0.5**0.25))


def test_a_normaliser_changes_what_is_read_and_not_what_is_kept():
    plain, by_count = ends(page()), ends(page(normaliser="count"))
    assert plain["kept"] == by_count["kept"] == plain["read"] == 64
    assert by_count["read"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("kind", growth.INPUTS),
        ("half_life", growth.HALF_LIVES),
        ("normaliser", recurrent.NORMALISERS),
        ("precision", growth.PRECISIONS),
    ],
)
def test_every_control_changes_the_picture(name, values):
    pages = {page_html(growth.grown(**{"kind": growth.INPUTS[2], name: v})) for v in values}
    assert len(pages) == len(values)


def test_all_combinations_of_the_controls_can_be_drawn():
    for kind, life, normaliser, precision in itertools.product(
        growth.INPUTS, growth.HALF_LIVES, recurrent.NORMALISERS, growth.PRECISIONS
    ):
        assert "<svg" in page_html(growth.grown(kind, life, normaliser, precision, steps=9))


def test_the_widget_draws_what_the_controls_ask_for():
    explorer = growth.grown.widget()
    explorer.controls["precision"].value = "float16"
    explorer.wait()
    assert "2,048" in explorer.picture.value
