"""Presets as rows of data: their names, learning rates and way through JSON."""

import json

import pytest

from qllk.presets import PRESETS, find_spec, name_of, peak_lr
from qllk.spec import Spec

each_preset = pytest.mark.parametrize("name", PRESETS)


@each_preset
def test_a_preset_survives_json(name):
    text = PRESETS[name].to_json()
    assert Spec.from_json(text) == PRESETS[name]
    assert Spec.from_json(json.dumps(json.loads(text), indent=2)) == PRESETS[name]


@each_preset
def test_a_preset_is_named_after_its_row_with_any_vocabulary(name):
    assert name_of(PRESETS[name]) == name_of(PRESETS[name].but(vocab_size=999)) == name


def test_a_changed_preset_has_no_name():
    assert name_of(PRESETS["gpt-nano"].but(layers=3)) == "a spec of your own"


def test_a_peak_learning_rate_belongs_to_its_preset():
    stated = {"gpt2": 6e-4, "bert-base": 1e-4, "bert-nano": 1e-3, "t5-base": 1e-3}
    assert {name: peak_lr(name) for name in PRESETS} == dict.fromkeys(PRESETS, 6e-3) | stated
    assert peak_lr("a spec of your own") == peak_lr("qllk-2")


def test_a_spec_is_found_by_name_by_path_and_as_itself(tmp_path):
    spec = PRESETS["gpt-nano"]
    (tmp_path / "spec.json").write_text(spec.to_json())
    for what in ("gpt-nano", tmp_path / "spec.json", str(tmp_path / "spec.json"), spec):
        assert find_spec(what) == spec


def test_a_spec_that_cannot_be_found_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"unknown preset 'gpt-3'; choose from .*qllk-2"):
        find_spec("gpt-3")
    with pytest.raises(FileNotFoundError, match=r"missing\.json"):
        find_spec(tmp_path / "missing.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="Spec must be a JSON object, got list"):
        find_spec(tmp_path / "list.json")
