"""`python -m qllk bench`: what is told before a race, what it prints, and what is kept of it."""

import json
import re

import pytest
from command_helpers import run_line

from qllk.probes import baselines
from qllk.study import race


def bench(tmp_path, text, options):
    return (
        f"bench --corpus {text} --seconds 0.2 --folder {tmp_path / 'runs'} --precision float32 "
        f"--plot {tmp_path / 'race.png'} --report {tmp_path / 'race.json'} {options}"
    )


def test_bench_searches_and_prints_the_control_next_to_the_model(capsysbinary, tmp_path, text):
    line = bench(
        *(tmp_path, text, "--entries qllk-2-nano qllk-2-local --lrs 0.004 --batches 1x32 2x16"),
    )
    line += " --keep 1 --seeds 2 --jobs 2"
    code, out, _ = run_line(capsysbinary, line)
    assert code == 0
    assert re.search(r"\[8/8\] qllk-2-.*, batch [12]x(32|16), seed 0, 0.05 s: ", out)
    assert re.search(r"\[2/2\] qllk-2-.*, seed 0, 0.2 s: ", out)
    assert "2 of 4 runs are read from" in out, "the first seed of the finals is that of the search"
    assert re.search(r"\[2/2\] qllk-2-.*, seed 1, 0.2 s: ", out)
    assert "| qllk-2-local |" in out
    assert (tmp_path / "race.png").stat().st_size > 1000
    rows = json.loads((tmp_path / "race.json").read_text())["rows"]
    assert [len(row["nats"]) for row in rows] == [2, 2]
    assert {row["batch"] * row["window"] for row in rows} == {32}
    assert rows[0]["held_out"] == len(text.read_bytes()) // 10 - 1
    again = run_line(capsysbinary, line)
    assert again[0] == 0
    assert "[1/" not in again[1], "runs that are done are not trained again"


def test_bench_gives_every_entry_the_same_dropout(capsysbinary, monkeypatch, tmp_path, text):
    given = {}

    def run_race(source, seconds, entries, **options):
        given.update(entries)
        raise ValueError("enough")

    monkeypatch.setattr(race, "run_race", run_race)
    options = "--dropout 0.1 --ngram-dropout 0.5 --entries qllk-2-local qllk-3"
    run_line(capsysbinary, bench(tmp_path, text, options))
    assert {spec.dropout for specs in given.values() for spec in specs} == {0.1}
    assert {spec.ngrams.dropout for spec in given["qllk-3"]} == {0.5}
    assert {spec.ngrams for spec in given["qllk-2-local"]} == {None}


def test_bench_prints_every_judgement_and_zpaq_where_it_is_installed(
    capsysbinary, monkeypatch, tmp_path, text
):
    options = "--entries qllk-2-nano --lrs 0.004 --batches 1x32 --seeds 1 --jobs 1"
    line = bench(tmp_path, text, options)
    monkeypatch.setattr(baselines, "measure_zpaq", lambda text: {})
    code, out, _ = run_line(capsysbinary, line)
    assert code == 0
    assert "| windows of 4,096 | stream |" in out
    assert "zpaq" not in out
    monkeypatch.setattr(baselines, "measure_zpaq", lambda text: {"zpaq": 2.0})
    said = "zpaq, after the training split as one stream: 1.3863 nats, 2.0000 bits per byte"
    assert said in run_line(capsysbinary, line)[1]
    facts = json.loads((tmp_path / "race.json").read_text())
    assert facts["baselines"]["zpaq"] == 2.0
    assert facts["baselines"]["uniform"] == 8.0
    assert facts["rows"][0]["stream_nats"] > 0
    monkeypatch.delattr(baselines, "measure_zpaq")  # it takes minutes, so it is measured once
    assert said in run_line(capsysbinary, line)[1]


def test_an_interrupted_race_says_where_its_finished_runs_are(
    capsysbinary, monkeypatch, tmp_path, text
):
    def run_race(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(race, "run_race", run_race)
    code, _, err = run_line(capsysbinary, bench(tmp_path, text, ""))
    assert code == 130
    assert f"finished runs are kept in {tmp_path / 'runs'}; the same command goes on" in err


@pytest.mark.parametrize("option", ["--report", "--plot", "--folder"])
def test_a_race_whose_results_cannot_be_written_does_not_start(
    capsysbinary, monkeypatch, tmp_path, text, option
):
    monkeypatch.setattr(race, "run_race", None)
    (tmp_path / "taken.png").mkdir()
    path = text / "runs" if option == "--folder" else tmp_path / "taken.png"
    code, out, err = run_line(capsysbinary, bench(tmp_path, text, f"{option} {path}"))
    assert (code, out) == (1, "")
    assert "cannot be written" in err


def test_the_results_of_a_race_are_printed_before_they_are_written(
    capsysbinary, monkeypatch, tmp_path, text
):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(baselines, "measure_zpaq", lambda text: {})
    monkeypatch.setattr("qllk.study.bench.write_atomically", fail)
    options = "--entries qllk-2-nano --lrs 0.004 --batches 1x32 --seeds 1 --jobs 1"
    code, out, err = run_line(capsysbinary, bench(tmp_path, text, options))
    assert (code, "| qllk-2-nano |" in out) == (1, True)
    assert "no space left" in err
