"""Reports: the facts of a run before it, its result after it, and both as text."""

import json

import pytest

from qllk.probes.baselines import measure_baselines
from qllk.text.corpora import corpus
from qllk.training.recipe import Recipe
from qllk.training.reports import (
    begin_report,
    end_report,
    finish_report,
    format_report,
    progress,
)
from qllk.training.trainer import Trainer

RECIPE = Recipe(steps=2, batch=1, window=32, validate_every=99, validate_bytes=64)


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_bytes(b"the cat sat on the mat. " * 40)
    return path


def trainer(text, model="qllk-2-nano", prefix=""):
    return Trainer(model, corpus(f"{prefix}{text}"), RECIPE)


def test_a_report_has_the_loss_on_the_whole_held_out_split(text):
    run = trainer(text)
    report = begin_report(run)
    list(run)
    result = finish_report(run, report)
    assert report.keys() < result.keys()
    assert result["held_out"] == len(run.corpus.valid) - 1 > RECIPE.validate_bytes
    assert result["nats_per_byte"] == run.validate(len(run.corpus.valid))
    assert (result["steps"], result["seconds"]) == (2, run.seconds)
    assert result["baselines"] == measure_baselines(run.corpus)
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(
    ("model", "prefix", "unit"),
    [
        ("qllk-2-nano", "", "bytes"),
        ("qllk-2-nano", "bpe-260:", "ids"),
        ("bert-nano", "", "hidden bytes"),
        ("t5-nano", "bpe-260:", "lost ids"),
    ],
)
def test_a_report_says_what_the_loss_is_about(text, model, prefix, unit):
    assert begin_report(trainer(text, model, prefix))["unit"] == unit


def test_the_text_of_a_report_has_every_number_and_sample():
    report = {
        "model": "gpt-nano",
        "unit": "hidden bytes",
        "parameters": 237_569,
        "corpus": "stdlib",
        "device": "cpu",
        "precision": "float32",
        "baselines": {"uniform": 8.0, "bz2": 2.12345},
        "samples": [[60.0, "import os"]],
        "ended": None,
        "steps": 2000,
        "bytes_seen": 8_192_000,
        "seconds": 61.4,
        "held_out": 1_234_567,
        "nats_per_byte": 1.38629,
        "bits_per_byte": 2.0,
    }
    assert format_report(report).splitlines() == [
        "gpt-nano, 237,569 parameters, on stdlib: 2,000 steps, 8.2 MB read in 61 s on cpu in "
        "float32",
        "held out, all 1,234,567 hidden bytes: 1.3863 nats, 2.0000 bits per byte",
        "baselines in bits per byte: uniform 8.000, bz2 2.123",
        "--- after 60.0 seconds of training ---",
        "import os",
    ]


def test_the_report_of_an_interrupted_run_has_what_was_measured_and_no_result(text):
    run = trainer(text)
    report = begin_report(run)
    next(run)
    found = end_report(report | progress(run), KeyboardInterrupt())
    assert found["ended"] == "interrupted after step 1"
    assert found["seconds"] == run.seconds
    assert "nats_per_byte" not in found
    assert "interrupted after step 1, so not evaluated" in format_report(found)
    assert end_report(report, OSError())["ended"] == "ended by an error after step 0"
