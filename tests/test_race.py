"""The race: everybody gets the same search, and the best size is found at each budget anew."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY

from qllk import presets
from qllk.model.families import build
from qllk.probes import evaluate
from qllk.probes.evaluate import LN2
from qllk.study import race
from qllk.training.recipe import Recipe


def result(run, nats):
    return {
        "entry": run.entry,
        "spec": json.loads(run.spec.to_json()),
        "recipe": {"lr": run.recipe.lr},
        "corpus": "text",
        "parameters": 1,
        "nats_per_byte": nats,
        "bytes_per_second": 1.0,
        "held_out": 10,
        "curve": [[1.0, nats]],
        "by_position": [nats] * race._BINS,
        "window_nats": {"1024": nats - 0.1, "4096": nats - 0.2},
        "stream_nats": nats - 0.3,
        "stream_longest": None,
    }


@pytest.fixture
def asked(monkeypatch):
    """Every run that a race asks for. Wide models win long races, and 8e-3 is the better rate."""
    runs = {}

    def pretend(wanted, folder, jobs):
        runs["folder"] = folder
        runs.update({run.key: run for run in wanted})
        return {run.key: result(run, nats(run)) for run in wanted}

    def nats(run):
        best_width = 96 if run.recipe.seconds < 500 else 192
        off = abs(run.spec.d_model - best_width) / 100 + (run.recipe.lr != 8e-3)
        return 1.0 + off + run.recipe.seed / 1000

    monkeypatch.setattr(race, "_run_all", pretend)
    monkeypatch.setattr(race, "corpus", lambda name: SimpleNamespace(fingerprint=name * 4))
    return runs


def runs_of(asked):
    return [run for key, run in asked.items() if key != "folder"]


def raced(budgets, seeds=3):
    entries = ["qllk-2", race._CONTROL]
    return race.run_race(
        "text", budgets, entries=entries, seeds=seeds, recipe=Recipe(), folder="runs", jobs=1
    )


def test_every_size_is_searched_with_every_rate_at_a_quarter_of_the_smallest_budget(asked):
    raced([100, 900])
    search = [run for run in runs_of(asked) if run.recipe.seconds == 25]
    sizes = sum(len(race.ENTRIES[entry]) for entry in ("qllk-2", race._CONTROL))
    assert len(search) == sizes * len(race.LEARNING_RATES)
    assert {run.recipe.seed for run in search} == {0}


def test_rates_and_entries_can_be_chosen_and_every_preset_is_an_entry(asked):
    rows = race.run_race(
        *("text", [100]),
        entries=["bert-nano", "t5-nano"],
        learning_rates=[1e-3, 8e-3],
        seeds=1,
        recipe=Recipe(),
        folder="runs",
        jobs=1,
    )
    assert {run.recipe.lr for run in runs_of(asked)} == {1e-3, 8e-3}
    assert [row["family"] for row in rows] == ["encoder", "encoder-decoder"]
    assert "| bert-nano, hidden ids |" in race.format_rows(rows)
    assert "| t5-nano, lost ids |" in race.format_rows(rows)
    assert set(presets.PRESETS) <= set(race.ENTRIES)


def test_results_of_another_text_or_version_are_not_taken_for_these(asked, monkeypatch):
    raced([100])
    first = asked["folder"]
    monkeypatch.setattr(race, "corpus", lambda name: SimpleNamespace(fingerprint="another"))
    raced([100])
    second = asked["folder"]
    monkeypatch.setattr(race.torch, "__version__", "9.9")
    raced([100])
    assert len({first, second, asked["folder"]}) == 3


def test_runs_that_are_read_and_not_trained_are_reported(tmp_path, capsys):
    run = race.Run("qllk-2", presets.PRESETS["qllk-2"], Recipe(), "text")
    (tmp_path / f"{run.key}.json").write_text('{"nats_per_byte": 1.0}')
    assert race._run_all([run], tmp_path, jobs=1) == {run.key: {"nats_per_byte": 1.0}}
    assert f"1 of 1 runs are read from {tmp_path}" in capsys.readouterr().out


def test_the_control_races_in_the_size_that_is_best_at_each_budget(asked):
    rows = {(row["entry"], row["seconds"]): row for row in raced([100, 900])}
    assert rows[race._CONTROL, 100]["d_model"] == 96
    assert rows[race._CONTROL, 900]["d_model"] == 192
    assert {row["lr"] for row in rows.values()} == {8e-3}


def test_a_row_has_every_seed_their_mean_and_their_spread(asked):
    row = raced([100])[0]
    assert len(row["nats"]) == 3
    assert row["spread"] == pytest.approx(0.002)
    assert row["mean_nats"] == pytest.approx(sum(row["nats"]) / 3)


def test_a_row_has_the_means_of_every_judgement(asked):
    row = raced([100])[0]
    mean = row["mean_nats"]
    assert row["stream_nats"] == pytest.approx(mean - 0.3)
    assert row["window_nats"] == pytest.approx({"1024": mean - 0.1, "4096": mean - 0.2})
    assert row["stream_longest"] is None


def test_a_run_is_known_by_all_that_decides_it():
    spec = presets.PRESETS["qllk-2"]
    run = race.Run("qllk-2", spec, Recipe(), "text")
    others = [run.but(seed=1), run.but(lr=1e-4), run._replace(spec=spec.but(dropout=0.1))]
    assert len({run.key, *(other.key for other in others)}) == 4
    assert run.key == race.Run("by another name", spec, Recipe(), "text").key


def test_the_table_has_the_best_first_within_a_budget(asked):
    lines = race.format_rows(raced([100])).splitlines()
    assert lines[0].startswith("| seconds | model |")
    assert [line.split(" | ")[1] for line in lines[2:]] == [race._CONTROL, "qllk-2"]


def cells(row):
    """The last cells of a row of the table: two windows and the stream."""
    return [cell.strip() for cell in race.format_rows([row]).splitlines()[2].split("|")[-4:-1]]


def test_the_table_shows_windows_and_the_stream_beside_the_race(asked):
    rows = raced([100])
    head, rule, *lines = race.format_rows(rows).splitlines()
    assert head.endswith("| windows of 1,024 | windows of 4,096 | stream |")
    assert len({line.count("|") for line in (head, rule, *lines)}) == 1
    row = rows[0] | {"window_nats": {"1024": 1.25, "4096": None}, "stream_nats": 1.125}
    assert cells(row) == ["1.2500", "–", "1.1250"]
    assert cells(row | {"stream_longest": 4096})[-1] == "1.1250 (4,096)"
    assert cells(row | {"stream_nats": None})[-1] == "–"


def test_results_without_streams_are_still_rows_of_the_table():
    """Those of encoders, and those kept by a version that judged in windows only."""
    run = race.Run("qllk-2", presets.PRESETS["qllk-2"], Recipe(), "text")
    old = result(run, 1.0)
    for key in ("window_nats", "stream_nats", "stream_longest"):
        del old[key]
    assert cells(race._row("qllk-2", 100, [old, result(run, 1.0)])) == ["–", "–", "–"]


def test_levels_whose_labels_would_overlap_share_one():
    levels = {"uniform": 8.0, "bz2": 1.74, "lzma": 1.73}
    assert race._merge_levels(levels) == {"lzma, bz2": 1.73, "uniform": 8.0}


def test_curves_are_drawn_in_bits_with_the_baselines_that_they_pass():
    curves = {"qllk-2": [(1.0, 4.0 * LN2), (2.0, 2.0 * LN2)]}
    chart = race.draw_curves(curves, {"uniform": 8.0, "bz2": 1.74, "lzma": 1.73})
    assert chart.lines == {"qllk-2": [(1.0, pytest.approx(4.0)), (2.0, pytest.approx(2.0))]}
    assert chart.levels == {"lzma, bz2": 1.73}
    assert race.draw_curves({"not yet validated": []}, {"uniform": 8.0}).levels == {}


def test_a_race_is_drawn_against_its_control(asked):
    rows = raced([100])
    ((curves, gaps),) = race.draw_race(rows, {})
    assert curves.lines.keys() == gaps.lines.keys() == {"qllk-2", race._CONTROL}
    assert {gap for _, gap in gaps.lines[race._CONTROL]} == {0.0}
    assert [x for x, _ in gaps.lines["qllk-2"]] == [(i + 0.5) / 16 for i in range(16)]
    by_entry = {row["entry"]: row["mean_nats"] for row in rows}
    expected = (by_entry["qllk-2"] - by_entry[race._CONTROL]) / LN2
    assert gaps.lines["qllk-2"][0][1] == pytest.approx(expected)


@pytest.mark.parametrize("entry", race.ENTRIES)
def test_every_size_of_every_entry_can_be_built(entry):
    with torch.device("meta"):
        for spec in race.ENTRIES[entry]:
            build(spec)


def test_a_run_ends_with_the_race_that_it_belongs_to(monkeypatch, tmp_path):
    (tmp_path / "text").write_bytes(b"to and fro, " * 50)
    run = race.Run(
        "qllk-2",
        presets.PRESETS["qllk-2-nano"],
        Recipe(seconds=60.0, batch=1, window=16, validate_bytes=50),
        str(tmp_path / "text"),
    )
    gone = SimpleNamespace(is_alive=lambda: False)
    monkeypatch.setattr(race.multiprocessing, "parent_process", lambda: gone)
    with pytest.raises(SystemExit, match="the race was ended"):
        race._train_one(run)


# ---------------------------------------------------------------- streams

RECIPE = Recipe(steps=1, seconds=0.01, batch=1, window=16, validate_bytes=50)


@pytest.fixture
def short(monkeypatch):
    """Windows and streams that fit tiny models and texts."""
    monkeypatch.setattr(race, "_WINDOWS", (24, 100))
    monkeypatch.setattr(race, "_LONGEST", 100)


def judged(tmp_path, spec):
    (tmp_path / "text").write_bytes(b"to and fro, hither and thither. " * 100)
    return race._train_one(race.Run("some", spec, RECIPE, str(tmp_path / "text")))


@pytest.mark.parametrize(
    ("name", "longest"),
    [("qllk-2", None), ("qllk-2-local", None), ("gpt", 100), ("gpt2-nano", 80)],
)
def test_a_run_is_judged_in_windows_and_as_the_longest_stream(
    monkeypatch, tmp_path, short, name, longest
):
    trainers, judge = [], race._judge_streams
    monkeypatch.setattr(
        race, "_judge_streams", lambda one, mean: trainers.append(one) or judge(one, mean)
    )
    found = judged(tmp_path, TINY[name])
    (trainer,) = trainers
    model, valid = trainer.model, trainer.corpus.valid
    assert found["stream_longest"] == longest
    assert race.longest_stream(model) == longest
    stream = evaluate.mean_loss(*evaluate.stream_losses(model, valid, longest=longest))
    assert found["stream_nats"] == pytest.approx(stream)
    context = trainer.spec.context or 100
    expected = {
        str(window): pytest.approx(evaluate.nats_per_token(model, valid, window), rel=1e-5)
        for window in (24, 100)
        if window <= context
    }
    assert found["window_nats"] == expected
    assert json.loads(json.dumps(found)) == found, "a result is the same when it is read again"


def test_a_state_that_is_full_is_not_one_that_grows(short):
    spec = TINY["gpt"].but(mixers=(("softmax", {"heads": 2, "window": 99}),))
    assert race.longest_stream(build(spec)) is None
    assert race.longest_stream(build(TINY["gpt"])) == 100


def test_a_model_that_is_asked_otherwise_is_not_judged_as_a_stream(tmp_path, short):
    found = judged(tmp_path, TINY["bert-nano"].but(vocab_size=257))
    assert found["nats_per_byte"] > 0
    assert "stream_nats" not in found


def test_the_windows_of_the_training_are_read_once(monkeypatch, tmp_path, short):
    lengths, judge = [], race.Trainer.stream_losses

    def watch(trainer, limit, longest):
        lengths.append(longest)
        return judge(trainer, limit, longest=longest)

    monkeypatch.setattr(race.Trainer, "stream_losses", watch)
    monkeypatch.setattr(race, "_WINDOWS", (RECIPE.window, 100))
    found = judged(tmp_path, TINY["gpt"])
    assert lengths == [100]
    assert found["window_nats"]["16"] == found["nats_per_byte"]
    assert found["window_nats"]["100"] == found["stream_nats"]
