"""Losses over a whole split, against a slow and obvious count."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from qllk.model.families import build
from qllk.probes import evaluate
from qllk.spec import Spec

SPEC = Spec(d_model=8, layers=1, mixers=(("conv", {"width": 3}),), dropout=0.5)


@pytest.fixture
def model():
    return build(SPEC, seed=0).double()


def some_text(size, letters=b"abcd ", seed=0):
    return np.random.default_rng(seed).choice(np.frombuffer(letters, np.uint8), size)


def slow_losses(model, text, window):
    """(place in its window, loss) of every byte but the first, one window at a time."""
    found = []
    for start in range(0, len(text) - 1, window):
        ids = torch.from_numpy(text[start : start + window + 1].astype(np.int64))[None]
        with torch.no_grad():
            log_p = F.log_softmax(model(ids[:, :-1]), dim=-1)[0]
        found += [(t, -log_p[t, ids[0, t + 1]].item()) for t in range(ids.shape[1] - 1)]
    return found


@pytest.mark.parametrize("size", [2, 20, 33, 34, 64, 65, 66, 200])
def test_nats_per_token_is_the_mean_over_every_token_but_the_first(model, size):
    text = some_text(size)
    slow = [loss for _, loss in slow_losses(model.eval(), text, 32)]
    assert len(slow) == size - 1
    for rows in (1, 3):
        got = evaluate.nats_per_token(model, text, 32, rows=rows)
        assert got == pytest.approx(sum(slow) / len(slow), abs=1e-12)


def test_loss_by_position_is_the_mean_at_each_place_of_the_window(model):
    text, places = some_text(100), defaultdict(list)
    for place, loss in slow_losses(model.eval(), text, 32):
        places[place].append(loss)
    nats, counts = evaluate.loss_by_position(model, text, 32)
    assert counts.tolist() == [len(places[t]) for t in range(32)]
    assert nats.tolist() == pytest.approx([np.mean(places[t]) for t in range(32)], abs=1e-12)


def test_places_that_a_short_text_does_not_reach_have_no_loss(model):
    nats, counts = evaluate.loss_by_position(model, some_text(10), 32)
    assert nats[:9].isfinite().all()
    assert nats[9:].isnan().all()
    assert counts.tolist()[9:] == [0] * 23


def test_evaluating_switches_dropout_off_and_back_on(model):
    text = some_text(100)
    model.train()
    first = evaluate.nats_per_token(model, text, 32)
    assert model.training
    assert evaluate.nats_per_token(model, text, 32) == first
    with pytest.raises(ValueError, match="ids must lie in"):
        evaluate.nats_per_token(model.train(), np.arange(5000), 32)
    assert model.training


def test_a_model_that_gives_no_numbers_has_no_loss(model):
    model.head.weight.data.fill_(math.nan)
    assert math.isnan(evaluate.nats_per_token(model, some_text(10), 32))


def test_a_single_byte_is_too_little_to_evaluate_on(model):
    with pytest.raises(ValueError, match="at least two ids, got 1"):
        evaluate.nats_per_token(model, some_text(1), 32)
