"""Runs that are kept, compared and repeated."""

import itertools
import json

import pytest
from helpers import SPEC

import qllk
from qllk.presets import find_spec
from qllk.study import entries, runs
from qllk.training import reports

TEXT = "task:markov:20000:0"
OPTIONS = {"batch": 2, "window": 32, "validate_every": 4, "validate_bytes": 300}


def train(commands=(), clock=None, **changes):
    """A run, its report and its steps."""
    recipe = qllk.Recipe(**({"steps": 9} | OPTIONS | changes))
    extra = {"clock": clock} if clock else {}
    trainer = qllk.Trainer(SPEC, qllk.corpus(TEXT), recipe, **extra)
    for name, value, at in commands:
        trainer.submit(name, value, at)
    report, steps = reports.begin_report(trainer), []
    for record in trainer:
        steps.append(record)
        if record.valid_nats is not None:
            report["curve"].append([trainer.seconds, record.valid_nats])
    return trainer, reports.finish_report(trainer, report), steps


@pytest.fixture
def kept(tmp_path):
    def keep(*args, **changes):
        place = runs.keep_run(tmp_path / "runs", *train(*args, **changes))
        return runs.read_run(place)

    return keep


def change(run, folder, **facts):
    """The same run with other facts in its file."""
    path = folder / "runs" / run.name / "run.json"
    path.write_text(json.dumps(run.facts | facts))
    return runs.read_run(path.parent)


def test_a_kept_run_holds_what_it_was_and_how_it_went(kept, tmp_path):
    run = kept()
    assert run.facts["spec"] == json.loads(SPEC.to_json())
    assert run.facts["recipe"]["window"] == 32
    assert len(run.facts["curve"]) == 2
    assert len(run.facts["each_step"]) == run.facts["steps"] == 9
    assert run.facts["fingerprint"] == qllk.corpus(TEXT).fingerprint
    assert run.facts["machine"]["torch"]
    assert find_spec(tmp_path / "runs" / run.name / "spec.json") == SPEC


def test_runs_that_begin_in_one_second_have_folders_of_their_own(kept, tmp_path):
    names = {kept().name for _ in range(3)}
    assert len(names) == 3
    assert {run.name for run in runs.kept_runs(tmp_path / "runs")} == names


def test_a_run_is_repeated_bit_for_bit_with_its_commands(kept):
    run = kept([("lr", 1e-3, 3), ("batch", 3, 5)])
    assert len(run.facts["log"]) == 2
    verdict = runs.rerun(run)
    assert verdict == (True, "all 9 losses and the weights are the same, bit for bit")


def test_a_run_that_ended_by_the_clock_is_repeated_with_the_times_of_then(kept):
    times = itertools.accumulate(itertools.cycle((0.1, 0.7, 0.2, 1.3)))
    run = kept(clock=lambda: next(times), seconds=9.0)
    assert 8 < run.facts["steps"] < 14
    assert runs.rerun(run).same


def test_a_run_that_differs_says_where(kept, tmp_path):
    run = kept()
    steps = [list(step) for step in run.facts["each_step"]]
    steps[6][1] += 1e-7
    verdict = runs.rerun(change(run, tmp_path, each_step=steps))
    assert not verdict.same
    assert verdict.sentence.startswith("the loss of step 7 was")
    assert verdict.sentence.endswith("(1e-07 apart), on the same machine")
    machine = run.facts["machine"] | {"torch": "2.0"}
    verdict = runs.rerun(change(run, tmp_path, weights="other", machine=machine))
    assert verdict == (
        False,
        "every loss was the same, but not the weights; the run was made with torch 2.0",
    )


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"spec": None}, "a module without a Spec"),
        ({"steps": 12}, "of its 12 steps only 9 are kept"),
        ({"fingerprint": "other"}, "it has changed"),
    ],
)
def test_a_run_that_cannot_be_repeated_says_why(facts, words, kept, tmp_path):
    with pytest.raises(ValueError, match=words):
        runs.rerun(change(kept(), tmp_path, **facts))


def test_two_runs_are_compared_by_what_they_were_given(kept):
    one, other = kept(), kept(lr=1e-3, batch=3)
    assert runs.compare(one, other) == {"recipe lr": (6e-3, 1e-3), "recipe batch": (2, 3)}
    assert runs.compare(one, one) == {}
    text = runs.format_comparison(one, other)
    assert text.startswith(f"{one.name} -> {other.name}: ")
    assert "recipe lr: 0.006 -> 0.001" in text
    assert "nothing that they were given" in runs.format_comparison(one, one)


def test_the_table_lists_every_run_and_the_best_one_last(kept, tmp_path):
    kept(steps=2), kept(steps=30), kept(steps=9)
    table = runs.format_runs(runs.kept_runs(tmp_path / "runs")).splitlines()
    assert len(table) == 5
    bits = [float(line.split("|")[-2]) for line in table[2:]]
    assert bits == sorted(bits, reverse=True)
    assert "| 30 |" in table[-1]
    chart = runs.draw_runs(runs.kept_runs(tmp_path / "runs"))
    assert len(chart.lines) == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is damaged"), ("[]", "is damaged"), ("{}", "it lacks 'bytes_seen'")],
)
def test_a_damaged_run_is_named_and_left_out_of_lists(content, words, kept, tmp_path):
    kept()
    broken = tmp_path / "runs" / "broken"
    broken.mkdir()
    (broken / "run.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        runs.read_run(broken)
    assert len(runs.kept_runs(tmp_path / "runs")) == 1
    with pytest.raises(FileNotFoundError, match="is not a kept run"):
        runs.read_run(tmp_path)


def test_an_entry_of_the_race_may_be_a_design_of_ones_own(tmp_path):
    design = tmp_path / "mine.json"
    design.write_text(SPEC.to_json())
    assert entries.find_entry(str(design)) == (SPEC,)
    assert entries.find_entry("gpt-nano") == entries.ENTRIES["gpt-nano"]
    with pytest.raises(ValueError, match="no entry 'gtp'; choose from qllk-2, "):
        entries.find_entry("gtp")
    with pytest.raises(FileNotFoundError):
        entries.find_entry(str(tmp_path / "other.json"))
