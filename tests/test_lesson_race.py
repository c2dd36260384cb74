"""Lesson 11: the judge covers what is unread, the race is fair, verdicts follow the evidence."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from qllk import Recipe, build
from qllk.lab.lessons import race
from qllk.lab.lessons.exercises.race import unread, verdict
from qllk.study import published, standings
from qllk.study.entries import RACE
from qllk.study.race import Point, Result, equal_bytes, make_trainer, race_here
from qllk.text import objectives
from qllk.text.corpora import task
from qllk.text.tasks import asked_digits

RECIPE = Recipe(steps=4, batch=2, window=16, validate_bytes=65)
HONEST = ("qllk-3", "without recall", "without n-grams", "without memory", "attention")


def data(size, seed=0):
    return np.random.default_rng(seed).integers(97, 123, size).astype(np.uint8)


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("window", [8, 12, 16])
def test_an_honest_model_does_not_notice_that_the_unread_is_covered(name, window):
    model = build(race.entries()[name], seed=0).double()
    text = data(2 * window + 1)
    ids = torch.from_numpy(text).long()
    usual = [
        objectives.token_losses(model(ids[None, i : i + window]), ids[None, i + 1 : i + window + 1])
        for i in (0, window)
    ]
    judged = race.read_as_written(model, text, window, unread)
    torch.testing.assert_close(judged, torch.cat(usual, dim=1)[0], rtol=0, atol=1e-10)


def test_the_published_model_notices_everywhere_but_at_a_patches_last_byte():
    torch.manual_seed(0)
    model, text = published.QLLK11(dim=8).double(), data(25)
    ids = torch.from_numpy(text).long()[None]
    usual = objectives.token_losses(model(ids[:, :-1]), ids[:, 1:])[0]
    differs = (race.read_as_written(model, text, 24, unread) - usual).abs() > 1e-9
    assert differs.tolist() == [t % 8 != 7 for t in range(24)]


def test_a_text_that_is_slid_shows_an_honest_model_as_it_is():
    model, text = build(race.entries()["qllk-3"], seed=0).double(), data(65)
    ids = torch.from_numpy(text).long()
    alone = [model(ids[None, i - 16 : i])[0, -1] for i in (16, 40, 64)]
    found = race.guess_last(model, text, np.array([16, 40, 64]), 16)
    torch.testing.assert_close(found, torch.stack(alone), rtol=0, atol=1e-10)
    losses = objectives.token_losses(
        race.guess_last(model, text, np.arange(16, 65), 16)[None], ids[None, 16:]
    )
    assert race.slid_bits(model, text, 16) == pytest.approx(losses.mean().item() / math.log(2))


def test_a_leak_wins_nothing_where_the_text_is_slid():
    text = task("noise", 1 << 15)
    recipe = Recipe(steps=150, batch=4, window=128, lr=4e-3, validate_bytes=1025)
    run = race_here({"it": race.published_model(32)}, text, recipe, seeds=1, points=1)["it"][0]
    assert run.bits < 7.5 < 8 < race.slid_bits(run.model, text.valid[:1025])


def test_all_runners_read_the_same_bytes_and_a_race_can_be_repeated():
    text = task("markov", 1 << 12)
    once, again = (race_here(race.entries(), text, RECIPE, seeds=2) for _ in range(2))
    assert equal_bytes(once) == equal_bytes(again)
    seen = {point.bytes_seen for runs in once.values() for run in runs for point in run.curve}
    assert seen == {32, 64, 128}  # after one, two and four steps of two windows of sixteen


def test_the_published_model_is_trained_from_its_own_seed_and_may_lose_its_hashing():
    text = task("markov", 1 << 12)
    trainer = make_trainer(race.published_model(8), text, RECIPE)
    torch.manual_seed(RECIPE.seed)
    fresh = published.QLLK11(dim=8)
    for mine, wanted in zip(trainer.model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(mine, wanted)
    entries = {"it": race.published_model(8), "without": race.published_model(8, hashing=False)}
    results = race_here(entries, text, RECIPE, seeds=1)
    assert results["it"][0].model.hash_proj.abs().sum() > 0
    assert results["without"][0].model.hash_proj.abs().sum() == 0


def test_a_run_is_read_off_between_its_points():
    nats = [bits * math.log(2) for bits in (8.0, 4.0)]
    points = [Point(1, 1.0, nats[0]), Point(2, 4.0, nats[1])]
    run = Result(1, points, torch.nn.Identity())
    assert [run.bits_at(seconds) for seconds in (1.0, 4.0)] == pytest.approx([8.0, 4.0])
    assert math.isclose(run.bits_at(2.0), 6.0)


def test_who_leads_must_be_ahead_of_everybody():
    clear, close = [2.0, 2.1, 2.05], [2.04, 2.07, 2.11]
    assert race.leader({"a": clear, "b": [3.0, 3.1, 3.05]}, verdict) == "a"
    assert race.leader({"a": clear, "b": [3.0, 3.1, 3.05], "c": close}, verdict) == "nobody"


# ---------------------------------------------------------------- the stored race


def test_the_stored_race_is_a_report_of_the_bench_with_all_its_controls():
    report = standings.stored_report()
    assert {row["entry"] for row in report["rows"]} >= set(RACE)
    for row in report["rows"]:
        assert len(row["nats"]) == 3
        assert row["curve"]
        assert row["corpus"] == "stdlib"


def test_the_longest_budget_of_a_report_is_drawn_under_plain_names():
    report = standings.stored_report()
    longer = [row | {"seconds": 900.0, "curve": [[900.0, 1.0]]} for row in report["rows"]]
    curves, gaps = race.long_race(report | {"rows": report["rows"] + longer})
    assert curves.lines["without recall"] == [(900.0, pytest.approx(1.0 / math.log(2)))]
    assert {"qllk-3", "without memory", "without n-grams"} < set(gaps.lines)
    assert all(gap == 0 for _, gap in gaps.lines["without recall"])


def test_the_standings_have_the_best_first_within_each_budget():
    report = standings.stored_report()
    longer = [row | {"seconds": 900.0} for row in report["rows"]]
    _, *lines = race.long_lines(report | {"rows": longer + report["rows"]})
    assert len(lines) == 2 * len(report["rows"])
    assert lines[0].startswith("100 s  qllk-3 ")
    assert f"{report['rows'][0]['stream_nats'] / math.log(2):.3f}" in lines[0]


# ---------------------------------------------------------------- the widget


@pytest.mark.parametrize("text", ["stdlib", "lookup", "noise"])
def test_a_live_race_takes_turns_by_time_and_ends_in_time(text):
    race.live_text(text)  # cut once, kept
    begun = time.perf_counter()
    pages = list(race.live("qllk-3, without recall, attention", text, 1))
    assert time.perf_counter() - begun < 10  # a busy machine is slow to look at the held-out text
    assert list(pages[-1].lines) == ["qllk-3", "without recall", "attention"]
    assert all(len(line) == len(pages[-1].lines["qllk-3"]) for line in pages[-1].lines.values())
    assert pages[-1].levels


@pytest.mark.parametrize(("text", "pays"), [("lookup", True), ("noise", False)])
def test_the_question_of_the_widget_has_a_true_answer(text, pays):
    field = {name: race.entries()[name] for name in ("qllk-3", "without memory")}
    recipe = replace(race._LIVE, steps=30)
    bits = equal_bytes(race_here(field, race.live_text(text)[0], recipe, points=1))
    assert (verdict(*bits.values()) == "ahead") == pays


def test_the_digits_of_the_widget_lie_beyond_the_byte_layers():
    _, distances = asked_digits(race.live_text("lookup")[0].train[:6144])
    assert np.mean(distances > 15) > 0.5
