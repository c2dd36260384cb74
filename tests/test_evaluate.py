"""Losses over a whole split, against a slow and obvious count."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY

from qllk.model.families import build
from qllk.probes import evaluate, state_numbers
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


# ---------------------------------------------------------------- streams

STREAMED = ["qllk-2", "qllk-2-local", "gpt"]  # with patches, without, and a state that grows


def losses_at_once(model, text):
    """The loss of every byte but the first, from one call on the whole text."""
    ids = torch.from_numpy(text.astype(np.int64))[None]
    with torch.no_grad():
        log_p = F.log_softmax(model.eval()(ids[:, :-1]), dim=-1)[0]
    return -log_p.gather(1, ids[0, 1:, None])[:, 0]


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("piece", [1, 7, 64, 1000])
def test_a_stream_is_the_whole_text_read_at_once_whatever_the_pieces(name, piece):
    model, text = build(TINY[name], seed=0).double(), some_text(200)
    slow = losses_at_once(model, text).split(piece)
    nats, counts = evaluate.stream_losses(model, text, piece=piece)
    assert counts.tolist() == [len(part) for part in slow]
    assert nats.tolist() == pytest.approx([part.mean().item() for part in slow], abs=1e-9)
    mean = torch.cat(slow).mean().item()
    assert evaluate.mean_loss(nats, counts) == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("name", STREAMED)
def test_a_text_that_is_read_first_counts_in_the_state_only(name):
    model, text = build(TINY[name], seed=0).double(), some_text(200)
    slow = losses_at_once(model, text)
    for piece in (1, 7, 64, 1000):
        got = evaluate.stream_losses(model, text[90:], before=text[:90], piece=piece)
        assert got[1].sum() == 109
        assert evaluate.mean_loss(*got) == pytest.approx(slow[90:].mean().item(), abs=1e-9)
    alone = evaluate.mean_loss(*evaluate.stream_losses(model, text[90:]))
    assert abs(alone - slow[90:].mean().item()) > 1e-6


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("size", [20, 33, 34, 200])
def test_windows_are_the_streams_as_long_as_a_window(name, size):
    model, text = build(TINY[name], seed=0).double(), some_text(size)
    windows = evaluate.nats_per_token(model, text, 32)
    for piece in (1, 7, 64):
        got = evaluate.stream_losses(model, text, longest=32, piece=piece)
        assert evaluate.mean_loss(*got) == pytest.approx(windows, abs=1e-9)


def test_every_stream_starts_from_the_state_after_the_text_that_is_read_first(model):
    before, text, found = some_text(50), some_text(65, seed=1), []
    for start in (0, 32):
        whole = np.concatenate((before, text[start : start + 33]))
        found.append(losses_at_once(model, whole)[50:].mean().item())
    nats, counts = evaluate.stream_losses(model, text, before=before, longest=32)
    assert counts.tolist() == [32, 32]
    assert nats.tolist() == pytest.approx(found, abs=1e-9)


def test_a_stream_carries_one_state_in_eval_mode_and_without_gradients(model):
    held, run = [], model.run

    def watch(ids, state):
        assert not model.training
        logits, after = run(ids, state)
        assert not logits.requires_grad
        held.append((ids.shape[1], state_numbers(after)))
        return logits, after

    model.train().run = watch
    evaluate.stream_losses(model, some_text(200), before=some_text(100), piece=16)
    assert model.training
    assert max(ids for ids, _ in held) == 16
    assert len({numbers for _, numbers in held}) == 1


@pytest.mark.parametrize("name", STREAMED)
def test_the_losses_by_id_are_those_of_the_whole_text_read_at_once(name):
    model, text = build(TINY[name], seed=0).double(), some_text(200)
    found = evaluate.losses_by_id(model, text)
    assert found.tolist() == pytest.approx(losses_at_once(model, text).tolist(), abs=1e-9)
    windows = [losses_at_once(model, text[start : start + 33]) for start in range(0, 199, 32)]
    found = evaluate.losses_by_id(model, text, longest=32)
    assert found.tolist() == pytest.approx(torch.cat(windows).tolist(), abs=1e-9)


def test_between_the_pieces_of_a_stream_the_model_is_as_it_was(model):
    pieces = evaluate.iterate_stream(model.train(), some_text(50), piece=16)
    for logits, targets in pieces:
        assert logits.shape == (*targets.shape, 256)
        assert model.training
        assert torch.is_grad_enabled()


def test_a_text_can_be_read_in_pieces_and_in_two_parts(model):
    text = some_text(50)
    once = evaluate.read_text(model.train(), text)
    assert model.training
    first = evaluate.read_text(model, text[:20], piece=7)
    twice = evaluate.read_text(model, text[20:], first, piece=7)
    assert (once.t, twice.t) == (50, 50)
    for a, b in zip(once.parts, twice.parts, strict=True):
        torch.testing.assert_close(a.x, b.x)
    assert evaluate.read_text(model, text[:0], first) is first
    assert evaluate.read_text(model, text[:0]) is None


class Plain(torch.nn.Module):
    """Maps ids to logits, and carries no state."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(256, 256)

    def forward(self, ids):
        return self.embed(ids)


@pytest.mark.parametrize(
    ("made", "options", "said"),
    [
        (Plain, {}, "with run.ids, state., and Plain has none; judge it in windows, with loss_by"),
        (lambda: build(TINY["bert-nano"]), {}, "an encoder is bidirectional"),
        (lambda: build(TINY["t5-nano"]), {}, "starts from model.encode.source., got no state"),
        (lambda: build(SPEC), {"longest": 0}, "longest must be a whole number above 0, got 0"),
        (lambda: build(SPEC), {"piece": 0}, "piece must be a whole number above 0, got 0"),
        (
            lambda: build(TINY["gpt2-nano"].but(context=49)),
            {"piece": 7},
            "reads at most 49 ids, but a stream would have 50; a smaller `longest` begins new",
        ),
        (
            lambda: build(TINY["gpt2-nano"]),
            {"before": some_text(60), "longest": 30},
            "reads at most 80 ids, but a stream would have 90; .* a shorter `before` leaves",
        ),
    ],
)
def test_what_cannot_be_read_as_a_stream_is_refused_in_words(made, options, said):
    with pytest.raises(ValueError, match=said):
        evaluate.stream_losses(made(), some_text(51), **options)
    with pytest.raises(ValueError, match="at least two ids, got 1"):
        evaluate.stream_losses(made(), some_text(1), **options)


def test_a_model_with_a_context_reads_streams_that_fit_it():
    model, text = build(TINY["gpt2-nano"].but(context=50), seed=0).double(), some_text(51)
    whole = losses_at_once(model, text).mean().item()
    assert evaluate.mean_loss(*evaluate.stream_losses(model, text)) == pytest.approx(whole)
    got = evaluate.stream_losses(model, text, before=text[:20], longest=30)
    assert got[1].tolist() == [30, 20]
