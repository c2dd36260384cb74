"""Presets as rows of data: their names, learning rates and way through JSON."""

import json
import os

import pytest

from qllk.presets import PRESETS, find_spec, name_of, recipe_of
from qllk.spec import Spec
from qllk.training.recipe import Recipe

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


def test_a_recipe_belongs_to_its_preset():
    stated = {"gpt2": 6e-4, "bert-base": 1e-4, "bert-nano": 1e-3, "t5-base": 1e-3}
    own = {name: {"lr": 6e-3, "batch": 4, "window": 1024, "carry": 1} for name in PRESETS}
    own |= {name: own["qllk-2"] | {"lr": lr} for name, lr in stated.items()}
    small_steps = {"lr": 8e-3, "batch": 1, "window": 2048, "carry": 64}
    own |= {name: small_steps for name in PRESETS if name.startswith("qllk-3")}
    assert {name: recipe_of(name) for name in PRESETS} == own
    assert recipe_of("a spec of your own") == own["qllk-2"]
    assert Recipe(**recipe_of("qllk-3")).window == 2048


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


def test_the_path_of_a_spec_may_start_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "spec.json").write_text(PRESETS["gpt"].to_json())
    assert find_spec("~/spec.json") == PRESETS["gpt"]


@pytest.mark.parametrize(
    ("content", "said"),
    [("[" * 100_000, "recursion"), ("\xff", "no Spec in"), (" " * 9**7, "at most")],
)
def test_a_file_that_is_no_spec_is_named(tmp_path, content, said):
    (tmp_path / "spec.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=said) as caught:
        find_spec(tmp_path / "spec.json")
    assert str(tmp_path / "spec.json") in str(caught.value)


def test_a_folder_or_a_pipe_is_no_spec(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path, tmp_path / "pipe.json", tmp_path / "missing.json"):
        with pytest.raises((FileNotFoundError, ValueError)):
            find_spec(path)
