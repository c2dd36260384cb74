"""The ledger's tests are tested: each gives the right verdict where that verdict is known."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from qllk import Recipe, Trainer, build, corpus, probes
from qllk.lab import ledger
from qllk.lab.lessons import claims, race
from qllk.lab.lessons.exercises.assembly import spec_of
from qllk.model.mixers import CumsumMixer
from qllk.probes import evaluate
from qllk.study import published
from qllk.study.entries import controls_of
from qllk.study.memory import digit_hits, lookup_text
from qllk.study.race import equal_bytes, race_here
from qllk.text.corpora import task
from qllk.text.tasks import asked_digits
from qllk.text.windows import sample_windows

HONEST = spec_of(32, (2, 3, 4, "word"), (3, 4, 6, "word"), 4096, 4096)
BAD = claims.Evidence(  # what QLLK as published is known to measure
    {"published": [4.3, 4.4, 4.3], "without hash": [4.3, 4.4, 4.31], "attention": [3.3, 3.4, 3.3]},
    seconds=claims._ENOUGH,
    noise=1.0,
    found=0.1,
)


def verdict_of(claim_id, seen):
    claim = next(claim for claim in claims.CLAIMS if claim.id == claim_id)
    found, measured = claim.test(seen)
    assert measured
    return found


# ---------------------------------------------------------------- models that deserve "holds"


class Folded(nn.Module):
    """A model whose patches are means, as in 1.0."""

    patch_encoder = nn.AvgPool1d(8)


class Few(nn.Module):
    """A model with few linear layers."""

    def __init__(self, dim=8):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(dim, dim) for _ in range(8)))


class Slow(nn.Module):
    """A model that takes as long for many rows as for one, as on a large machine."""

    def forward(self, ids):
        time.sleep(0.005)
        return ids


class Forgetting(nn.Module):
    """A sum that its gate can empty."""

    def __init__(self, dim):
        super().__init__()
        self.gate_proj = nn.Linear(dim, dim)

    def forward(self, x):
        S, outputs = torch.zeros_like(x[:, 0]), []
        for x_t, gate in zip(x.unbind(1), self.gate_proj(x).sigmoid().unbind(1), strict=True):
            S = gate * S + x_t
            outputs.append(S)
        return torch.stack(outputs, dim=1)


def draw_slowly(*arguments):
    time.sleep(0.5)
    return sample_windows(*arguments)


def train(spec, text, steps, window=1024):
    trainer = Trainer(spec, text, Recipe(steps=steps, batch=2, window=window, lr=8e-3))
    list(trainer)
    return trainer.model


def honest_noise():
    text = task("noise", 1 << 15)
    return evaluate.nats_per_token(train(HONEST, text, steps=10), text.valid, 256)


def honest_ten_steps():
    text, rng = corpus("stdlib").train, torch.Generator().manual_seed(0)
    model = build(HONEST.but(recall=None, ngrams=None), seed=0)
    return claims.ten_steps(model, lambda: sample_windows(text, 4, 128, rng))


def honest_recall():
    text = lookup_text(6 * 20_000, 6 * 3_000)
    hits, (_, distances) = digit_hits(train(HONEST, text, 60), text.valid), asked_digits(text.valid)
    return {"found": hits[distances > 4096].mean(), "state": honest_state}


def honest_state(length):
    return probes.state_numbers(build(HONEST).run(torch.zeros(1, length, dtype=torch.long))[1])


def honest_hashing():
    """Tables of n-grams are hashed, and pay."""
    entries = {"published": HONEST, "without hash": controls_of(HONEST)["without n-grams"]}
    text = race.excerpt(corpus("stdlib"), 1 << 20, 4097)
    recipe = Recipe(steps=60, batch=2, window=256, lr=8e-3, validate_bytes=4097)
    return {"bits": equal_bytes(race_here(entries, text, recipe))}


HOLDS = {
    "L01": lambda: {"patches": 1 << 20},  # the claim is true of texts that are long enough
    "L02": dict,
    "L03": lambda: {"first": lambda: nn.Embedding(256, 256)},  # a table multiplies nothing
    "L04": lambda: {"first": lambda: published.QLLK10(n_layers=10)},
    "L06": lambda: {"second": lambda: published.QLLK11(dim=64)},
    "L07": lambda: {"ten_steps": honest_ten_steps()},
    "L08": lambda: {"noise": honest_noise()},
    "L09": lambda: {"second": Few},
    "L10": lambda: {"draw": draw_slowly},
    "L11": honest_recall,
    "L12": lambda: {"bits": {"published": [3.4, 3.3], "attention": [3.3, 3.4]}},
    "L13": lambda: {"second": Folded},
    "L14": lambda: {"device": "cpu", "second": Slow},
    "L18": dict,
    "L19": dict,
    "L19a": honest_hashing,
    "L19b": lambda: {"kernel": Forgetting},
    "L19c": dict,
}


@pytest.mark.parametrize("claim_id", HOLDS)
def test_a_model_that_deserves_it_gets_holds(claim_id):
    assert verdict_of(claim_id, replace(BAD, **HOLDS[claim_id]())) == "holds"


def test_only_what_needs_another_machine_can_never_hold():
    tested = {claim.id for claim in claims.CLAIMS}
    assert tested - HOLDS.keys() == {"L05", "L15", "L16", "L17"}
    for claim_id in tested - HOLDS.keys():
        assert verdict_of(claim_id, BAD) == "not tested here"


# ---------------------------------------------------------------- models that do not


class Bulky(published.QLLK11):
    def __init__(self):
        super().__init__(dim=512)


FAILS = {
    **{f"L{n:02}": {} for n in (1, 3, 4, 6, 7, 8, 12, 13)},
    "L02": {"second": lambda: build("gpt-nano")},
    "L11": {"state": lambda length: length},
    "L14": {"device": "cpu", "second": lambda: published.QLLK11(dim=128)},
    "L18": {"second": Bulky},
    "L19": {"second": Trainer},
    "L19a": {},
}


@pytest.mark.parametrize("claim_id", FAILS)
def test_a_model_that_does_not_deserve_it_fails(claim_id):
    assert verdict_of(claim_id, replace(BAD, **FAILS[claim_id])) == "does not hold"


@pytest.mark.parametrize("claim_id", ["L09", "L10", "L11", "L19b"])
def test_half_of_a_claim_holds_in_part(claim_id):
    assert verdict_of(claim_id, BAD) == "holds in part"


def test_another_kernel_does_not_replace_the_table(monkeypatch):
    monkeypatch.setattr(claims.kernels, "cumsum_kernel", lambda q, k, v: (q * k * v, None))
    assert verdict_of("L19c", BAD) == "does not hold"


@pytest.mark.parametrize("claim_id", ["L12", "L14"])
def test_what_was_not_done_is_not_tested(claim_id):
    assert verdict_of(claim_id, replace(BAD, seconds=2.0, device=None)) == "not tested here"


def test_the_published_proof_of_learning_is_ten_steps_on_random_bytes():
    torch.manual_seed(0)
    first, last = claims.ten_steps(published.QLLK10(), claims.random_bytes)
    assert 5.6 < last < first < 5.8  # published: 5.72 to 5.67
    assert last > np.log(256)


# ---------------------------------------------------------------- the ledger


def test_every_claim_of_the_ledger_has_a_verdict():
    found = ledger.judge(claims.CLAIMS, replace(BAD, seconds=2.0, device=None))
    assert [f.id for f in found] == [f"L{n:02}" for n in range(1, 20)] + ["L19a", "L19b", "L19c"]
    counts = ledger.verdict_bars(found).values
    assert list(counts) == ["holds", "holds in part", "does not hold", "not tested here"]
    assert sum(counts.values()) == 22
    assert counts["not tested here"] == 6


def test_code_is_counted_without_words():
    assert claims.code_lines(ledger.Finding) == 5
    assert (
        claims.code_lines(CumsumMixer)
        < len(claims.inspect.getsource(CumsumMixer).splitlines()) - 10
    )
