"""Lesson 11: the judge covers what is unread, the race is fair, verdicts follow the evidence."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from qllk import Recipe, build
from qllk.lab.lessons import claims, race
from qllk.model.mixers import CumsumMixer
from qllk.study import published
from qllk.study.race import Point, Result, equal_bytes, make_trainer, race_here
from qllk.text import objectives
from qllk.text.corpora import task

RECIPE = Recipe(steps=4, batch=2, window=16, validate_bytes=65)
HONEST = ("kernel", "control", "attention")


def data(size, seed=0):
    return np.random.default_rng(seed).integers(97, 123, size).astype(np.uint8)


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("window", [8, 12, 16])
def test_an_honest_model_does_not_notice_that_the_unread_is_covered(name, window):
    model = build(race.entries(16)[name], seed=0).double()
    text = data(2 * window + 1)
    ids = torch.from_numpy(text).long()
    usual = [
        objectives.token_losses(model(ids[None, i : i + window]), ids[None, i + 1 : i + window + 1])
        for i in (0, window)
    ]
    judged = race.read_as_written(model, text, window)
    torch.testing.assert_close(judged, torch.cat(usual, dim=1)[0], rtol=0, atol=1e-10)


def test_the_published_model_notices_everywhere_but_at_a_patches_last_byte():
    torch.manual_seed(0)
    model, text = published.QLLK11(dim=8).double(), data(25)
    ids = torch.from_numpy(text).long()[None]
    usual = objectives.token_losses(model(ids[:, :-1]), ids[:, 1:])[0]
    differs = (race.read_as_written(model, text, 24) - usual).abs() > 1e-9
    assert differs.tolist() == [t % 8 != 7 for t in range(24)]


def test_all_runners_read_the_same_bytes_and_a_race_can_be_repeated():
    text = task("markov", 1 << 12)
    once, again = (race_here(race.entries(8), text, RECIPE, seeds=2) for _ in range(2))
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
    clear, close = [2.0, 2.1, 2.05], [2.04, 2.14, 2.09]
    assert race.leader({"a": clear, "b": [3.0, 3.1, 3.05]}) == "a"
    assert race.leader({"a": clear, "b": [3.0, 3.1, 3.05], "c": close}) == "nobody"


def test_counting_sees_the_pairs_of_attention():
    entries = race.entries(32)
    kernel = race.scaling(entries["kernel"], [128, 256], piece=128)
    attention = race.scaling(entries["attention"], [128, 256])
    assert kernel.operations[1] == 2 * kernel.operations[0]
    assert attention.operations[1] > 2.2 * attention.operations[0]
    assert kernel.state[0] == kernel.state[1]
    assert attention.state[1] == 2 * attention.state[0]


@pytest.mark.parametrize("rule", ["kernel", "matrix", "attention"])
def test_one_pair_comes_back_from_every_state(rule):
    assert race.recalled(rule, 1) == 1.0


def test_a_sum_holds_fewer_pairs_than_a_matrix_and_a_cache_holds_all():
    shares = [race.recalled(rule, 64) for rule in ("kernel", "matrix", "attention")]
    assert shares == sorted(shares)
    assert shares[0] < 0.5 < 0.8 < shares[1] < shares[2] == 1.0
    assert race.holds_pairs({1: 1.0, 2: 0.9, 4: 0.5, 8: 0.95}) == 2
    assert race.holds_pairs({1: 0.1}) == 0


# ---------------------------------------------------------------- the claims


def runs_at(bits):
    """Three seeds that end around so many bits per byte."""
    return [Result(1, [Point(1, 1.0, bits + d)], None) for d in (0.0, 0.01, 0.02)]


def evidence(**changes):
    names = ("published", "without hash", "kernel", "control", "attention")
    line = race.Scaling([100, 1000], [0.1, 1.0], [10, 100], [7, 7])
    known = {
        "runs": dict.fromkeys(names, runs_at(4.0)),
        "as_written": [9.0, 9.0, 9.0],
        "noise": (6.0, 9.0),
        "kernel": line,
        "attention": line,
        "recall": {"kernel": {1: 1.0, 8: 0.9, 16: 0.1}},
    }
    return claims.Evidence(**known | changes)


def verdict_of(claim_id, seen):
    claim = next(claim for claim in claims.CLAIMS if claim.id == claim_id)
    found, measured = claim.test(seen)
    assert measured
    return found


@pytest.mark.parametrize(
    ("claim_id", "changes", "otherwise"),
    [
        ("L02", {"kernel": race.Scaling([100, 1000], [0.1, 9.0], [10, 900], [7, 7])}, "does not"),
        ("L07", {"noise": (6.0, 7.0)}, "holds"),
        ("L08", {"noise": (8.0, 8.0)}, "holds"),
        ("L11", {"recall": {"kernel": {1: 1.0, 4096: 1.0}}}, "holds"),
        ("L12", {"as_written": [4.1, 4.1, 4.1]}, "holds"),
    ],
)
def test_a_verdict_follows_the_evidence(claim_id, changes, otherwise):
    assert verdict_of(claim_id, evidence()) != verdict_of(claim_id, evidence(**changes))
    assert verdict_of(claim_id, evidence(**changes)).startswith(otherwise)


def test_every_claim_of_the_ledger_has_a_verdict():
    found = claims.findings(evidence())
    assert [f.id for f in found] == [f"L{n:02}" for n in range(1, 20)] + ["L19a", "L19b", "L19c"]
    counts = claims.verdict_bars(found).values
    assert sum(counts.values()) == 22
    assert counts["untested"] == sum(f.verdict.startswith("needs") for f in found) == 4


def test_code_is_counted_without_words():
    assert claims.code_lines(claims.Finding) == 5
    assert (
        claims.code_lines(CumsumMixer)
        < len(claims.inspect.getsource(CumsumMixer).splitlines()) - 10
    )


# ---------------------------------------------------------------- the widget


@pytest.mark.parametrize("text", ["stdlib", "recall", "noise"])
def test_a_live_race_takes_turns_by_time_and_ends_in_time(text):
    race.live_text(text)  # cut once, kept
    begun = time.perf_counter()
    pages = list(race.live("kernel, control, attention", text, 1))
    assert time.perf_counter() - begun < 10  # a busy machine is slow to look at the held-out text
    assert list(pages[-1].lines) == list(HONEST)
    assert all(len(line) == len(pages[-1].lines["kernel"]) for line in pages[-1].lines.values())
    assert pages[-1].levels


def test_narrow_changes_the_patches_too():
    spec = race.narrow(race.PRESETS["qllk-2-nano"], 24)
    assert (spec.d_model, spec.patch.d_model) == (24, 24)
    assert (
        spec.but(d_model=64, patch=replace(spec.patch, d_model=64)) == race.PRESETS["qllk-2-nano"]
    )
