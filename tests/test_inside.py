"""Probes of a model's inside, where the answer is known: states, visibility, weights."""

from typing import NamedTuple

import pytest
import torch
from helpers import built, same

from qllk.model.families import ModelState, build
from qllk.model.recurrent import ConvState, SumState
from qllk.probes import (
    attention_weights,
    positions_seen,
    rows_in_use,
    state_bytes,
    state_numbers,
    state_rms,
    visibility,
)
from qllk.spec import Patch, Recall, Spec

CONV, CUMSUM, SOFTMAX = ("conv", {"width": 3}), ("cumsum", {}), ("softmax", {"heads": 2})
LINEAR = ("linear", {"heads": 2, "decay": "channel"})
WINDOW = ("softmax", {"heads": 2, "window": 5})
RELATIVE = ("relative", {"heads": 2, "buckets": 8, "distance": 20})
HYBRID = Spec(d_model=16, layers=5, mixers=(CONV, CUMSUM, LINEAR, WINDOW, SOFTMAX))
SEQ2SEQ = Spec(d_model=16, layers=2, mixers=(SOFTMAX,), family="encoder-decoder", cross=SOFTMAX)


def patched(mixers, layers):
    patch = Patch(size=3, d_model=24, layers=2, mixers=mixers)
    return Spec(d_model=16, layers=layers, mixers=(CONV,), patch=patch)


# ---------------------------------------------------------------- states


def test_a_state_without_a_kind_is_refused():
    class Unknown(NamedTuple):
        S: torch.Tensor

    with pytest.raises(ValueError, match="the state of a layer must have a kind; got Unknown"):
        state_rms(ModelState(1, (Unknown(torch.zeros(1)),)))


def test_the_source_of_a_decoder_is_not_counted_as_a_layer():
    model = built(SEQ2SEQ)
    assert list(state_rms(model.run(torch.randint(256, (1, 29)))[1])) == [
        "byte 1 softmax",
        "byte 2 softmax",
    ]


def test_rows_in_use_are_the_contexts_that_the_text_had():
    recall = Recall((2, 3), addresses=4096, rows=16)
    model = build(Spec(d_model=8, layers=1, mixers=(CONV,), recall=recall), seed=0)
    texts = torch.tensor([list(b"abracadabra abracadabra"), list(b"a" * 23)])
    _, state = model.run(texts)
    state.recall.rows[..., 0] = 0  # as if each row had the first of its owners
    found = rows_in_use(model, state)
    for n in (2, 3):  # what follows the last byte is not known yet
        rows = sum(
            len({bytes(text[max(0, t + 1 - n) : t + 1]) for t in range(22)})
            for text in map(bytes, texts.tolist())
        )
        assert found[f"recall {n}"] == pytest.approx(rows / (2 * 4096))
    assert list(found) == ["recall 2", "recall 3"]


def test_a_model_without_a_recall_has_no_rows_in_use():
    model = built(HYBRID)
    assert rows_in_use(model, model.run(torch.randint(256, (1, 5)))[1]) == {}
    assert rows_in_use(model, None) == {}


def test_state_bytes_follow_the_precision():
    state = SumState(torch.zeros(2, 5), 3)
    assert state_numbers(state) == 10
    assert state_bytes(state) == 40
    nested = (None, state, (ConvState(torch.zeros(1, 4, dtype=torch.float64)), 9))
    assert state_numbers(nested) == 14
    assert state_bytes(nested) == 72


def test_a_state_that_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="tuples, tensors, counts and None; got 'S'"):
        state_numbers((torch.zeros(1), "S"))


# ---------------------------------------------------------------- visibility


def test_positions_seen_is_a_row_of_visibility():
    model = built(patched((CUMSUM, LINEAR), layers=3)).double()
    seen = visibility(model, 11)
    assert seen.shape == (11, 11)
    assert seen.dtype == torch.bool
    for t in range(11):
        same(positions_seen(model, t, 11), seen[t])


def test_a_decoder_with_a_source_sees_its_own_past():
    model = build("t5-nano", seed=0)
    assert positions_seen(model, 3, 8).tolist() == [True] * 4 + [False] * 4
    same(visibility(model, 8), torch.ones(8, 8).tril().bool())


def test_the_probe_leaves_the_model_as_it_was():
    model = built(HYBRID.but(dropout=0.5)).double().requires_grad_(False)
    state = torch.get_rng_state()
    with torch.no_grad():
        seen = visibility(model, 9)
    assert seen.diagonal().all()  # with dropout, a position could miss itself
    assert not seen.triu(1).any()
    assert model.training
    assert not model.embed._forward_hooks
    assert all(p.grad is None for p in model.parameters())
    same(torch.get_rng_state(), state)


def test_the_probe_refuses_a_position_outside_and_a_model_without_embedding():
    with pytest.raises(ValueError, match="t=9 must lie in 0 … 8"):
        positions_seen(built(HYBRID), 9, 9)
    with pytest.raises(ValueError, match="Linear has no embedding `embed` to measure from"):
        visibility(torch.nn.Linear(2, 2), 4)


# ---------------------------------------------------------------- weights of attention


def test_a_decoder_with_a_source_shows_weights_of_both_texts_by_layer():
    model = build(SEQ2SEQ.but(layers=1, positions=RELATIVE))
    found = attention_weights(model, torch.randint(256, (2, 7)))
    assert {name: tuple(weights.shape) for name, weights in found.items()} == {
        "encoder.body.blocks.0.mix": (2, 2, 7, 7),
        "body.blocks.0.mix": (2, 2, 7, 7),
        "body.blocks.0.cross": (2, 2, 7, 7),
    }


def test_attention_on_patches_shows_weights_of_patches():
    model = build(patched((SOFTMAX,), layers=2))
    found = attention_weights(model, torch.randint(256, (1, 11)))
    assert {name: tuple(weights.shape) for name, weights in found.items()} == {
        "body.path.trunk.blocks.0.mix": (1, 2, 3, 3),
        "body.path.trunk.blocks.1.mix": (1, 2, 3, 3),
    }
