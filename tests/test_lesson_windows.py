"""Lesson 14: what a window keeps and reaches, two rebuilt faults, and its verdicts."""

from dataclasses import replace

import pytest
import torch

from qllk import probes
from qllk.lab import ledger
from qllk.lab.lessons import windows
from qllk.lab.pictures.charts import page_html
from qllk.model.families import build
from qllk.model.masks import causal_mask


def verdicts(seen):
    return {finding.id: finding.verdict for finding in ledger.judge(windows.CLAIMS, seen)}


def test_the_rebuilt_parts_fail_and_the_librarys_own_hold():
    published, ours = verdicts(windows.Evidence()), verdicts(windows.OURS)
    assert [published[id] for id in ("L27", "L29", "L34")] == ["does not hold"] * 3
    assert [ours[id] for id in ("L27", "L28", "L29", "L34")] == ["holds"] * 4
    assert published["L28"] == "holds in part"
    assert published["L22"] == "not tested here"


def test_latents_that_keep_as_much_as_keys_compress_nothing():
    assert verdicts(replace(windows.OURS, latents=256))["L28"] == "does not hold"


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "holds"), (2.0, "does not hold")])
def test_sizes_hold_if_each_is_near_what_was_published(factor, verdict):
    sizes = windows.Evidence().sizes
    seen = replace(windows.OURS, counted=lambda preset: factor * sizes[preset])
    assert verdicts(seen)["L20"] == verdict
    one = replace(windows.OURS, counted=lambda p: sizes[p] * (1 if p.endswith("xl") else 3))
    assert verdicts(one)["L20"] == "holds in part"


def test_the_counted_sizes_are_those_of_the_presets():
    assert windows._counted("swa-mla-small") == 158_352_896
    assert verdicts(windows.Evidence())["L20"] == "does not hold"


def test_the_saving_of_memory_holds_for_a_model_of_the_right_size():
    # Lion keeps one number less for each weight: 4 bytes of 1.5 billion are 6 GB.
    assert verdicts(replace(windows.OURS, counted=lambda preset: 1.5e9))["L23"] == "holds"
    assert verdicts(windows.Evidence())["L23"] == "does not hold"


@pytest.mark.parametrize(("window", "sinks"), [(4, 2), (1, 0), (3, 0), (64, 1)])
def test_the_keys_that_a_query_sees_are_counted(window, sinks):
    counts = windows.keys_seen(windows.our_attention, 20, window, sinks)
    assert counts == causal_mask(20, 20, window, sinks).sum(dim=1).tolist()
    assert windows.keys_seen(windows.published_attention, 20, window, sinks) == list(range(1, 21))


def test_a_rotation_by_heads_is_told_from_one_by_places():
    assert windows.turns_with_time(windows.our_rotation)
    assert not windows.turns_with_time(windows.published_rotation)
    assert not windows.turns_with_time(lambda x: x)


@pytest.mark.parametrize("kind", windows.KINDS)
def test_each_kind_keeps_what_its_name_says(kind):
    short, long = windows.kept_numbers(kind, 128), windows.kept_numbers(kind, 256)
    per_step = {"all keys": 256, "keys of two heads": 64, "latents": 48}
    assert long - short == 128 * per_step.get(kind, 0)


@pytest.mark.parametrize("mixers", windows.MODELS.values(), ids=windows.MODELS)
def test_each_model_can_be_built_and_hides_the_future(mixers):
    seen = probes.visibility(build(windows.model_of(mixers), seed=0), 9)
    assert not seen.triu(1).any()


def test_windows_of_one_see_nothing_else_however_many_there_are():
    seen = probes.visibility(build(windows.model_of(windows.MODELS["windows of 1"]), seed=0), 9)
    assert torch.equal(seen, torch.eye(9).bool())


@pytest.mark.parametrize(("layers", "first"), [(1, 12), (2, 9), (3, 6), (5, 0)])
def test_a_stack_reaches_as_far_as_its_windows_add_up(layers, first):
    _, note = windows.reach(4, 0, layers)
    assert f"back to step {first}," in note.digest


def test_every_control_changes_the_picture():
    base = {"window": 3, "sinks": 0, "layers": 1}
    for name, values in {
        "window": (2, 3, 4, 6, 8),
        "sinks": (0, 1, 2),
        "layers": (1, 2, 3),
    }.items():
        pages = {page_html(windows.reach(**base | {name: value})) for value in values}
        assert len(pages) == len(values)


def test_the_widget_draws_what_the_controls_ask_for():
    explorer = windows.reach.widget()
    explorer.controls["layers"].value = 3
    explorer.wait()
    assert "layers 3" in explorer.picture.value
