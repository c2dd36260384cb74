"""Losses over a whole split, and floors: each against a slow and obvious count."""

import bz2
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from qllk.model.families import build
from qllk.probes import baselines, evaluate
from qllk.spec import Spec
from qllk.text import objectives
from qllk.text.corpora import Corpus, corpus

SPEC = Spec(d_model=8, layers=1, mixers=(("conv", {"width": 3}),), dropout=0.5)


@pytest.fixture
def model():
    return build(SPEC, seed=0).double()


def some_text(size, letters=b"abcd ", seed=0):
    return np.random.default_rng(seed).choice(np.frombuffer(letters, np.uint8), size)


# ---------------------------------------------------------------- losses


def test_byte_losses_are_minus_the_log_of_what_the_byte_was_given():
    logits = torch.randn(2, 3, 256, dtype=torch.float64)
    targets = torch.randint(256, (2, 3), dtype=torch.uint8)
    losses = objectives.token_losses(logits, targets)
    for row in range(2):
        for t in range(3):
            chances = logits[row, t].exp() / logits[row, t].exp().sum()
            assert losses[row, t].item() == pytest.approx(-chances[targets[row, t].item()].log())


def test_byte_losses_of_half_precision_logits_are_single():
    logits = torch.randn(1, 1, 256).bfloat16()
    losses = objectives.token_losses(logits, torch.zeros(1, 1, dtype=torch.uint8))
    assert losses.dtype == torch.float32
    assert objectives.token_losses(logits.double(), torch.zeros(1, 1)).dtype == torch.float64


def slow_losses(model, text, window):
    """(place in its window, loss) of every byte but the first, one window at a time."""
    found = []
    for start in range(0, len(text) - 1, window):
        ids = torch.from_numpy(text[start : start + window + 1].astype(np.int64))[None]
        with torch.no_grad():
            chances = F.log_softmax(model(ids[:, :-1]), dim=-1)[0]
        found += [(t, -chances[t, ids[0, t + 1]].item()) for t in range(ids.shape[1] - 1)]
    return found


@pytest.mark.parametrize("size", [2, 20, 33, 34, 64, 65, 66, 200])
def test_nats_per_byte_is_the_mean_over_every_byte_but_the_first(model, size):
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


def test_judging_switches_dropout_off_and_back_on(model):
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


def test_a_single_byte_cannot_be_judged_on(model):
    with pytest.raises(ValueError, match="two bytes or more, got 1"):
        evaluate.nats_per_token(model, some_text(1), 32)


# ---------------------------------------------------------------- floors


def witten_bell(train, context, byte):
    """The chance of a byte by recursion over ever shorter contexts, counted from scratch."""
    if context is None:
        return 1 / 256
    n = len(context)
    after = [train[i + n] for i in range(len(train) - n) if train[i : i + n] == context]
    lower = witten_bell(train, context[1:] if n else None, byte)
    if not after:
        return lower
    kinds = len(set(after))
    return (after.count(byte) + kinds * lower) / (len(after) + kinds)


def test_tables_equal_a_slow_count():
    train, valid = some_text(300), some_text(60, b"abcdXY ", seed=1)
    got = baselines.table_losses(train, valid)
    train, valid = train.tobytes(), valid.tobytes()
    for order, name in enumerate(("unigram", "bigram", "trigram")):
        paid = [
            -math.log(witten_bell(train, valid[max(0, i - order) : i], byte))
            for i, byte in enumerate(valid)
        ]
        assert got[name] == pytest.approx(np.mean(paid), abs=1e-12)


def test_the_chances_of_all_bytes_sum_to_one():
    train = some_text(300)
    for context in (b"ab", b"aZ", b"ZZ"):
        text = b"".join(context + bytes([byte]) for byte in range(256))
        for chances in baselines.table_probabilities(train, np.frombuffer(text, np.uint8)).values():
            assert chances[2::3].sum() == pytest.approx(1.0, abs=1e-12)


def test_counting_in_pieces_counts_each_gram_once():
    text = some_text(1000)
    for order in range(3):
        slow = Counter(text[i : i + order + 1].tobytes() for i in range(1000 - order))
        for piece in (1, 7, 999, 5000) if order < 2 else (400,):
            counts = baselines.count_grams(text, order, piece)
            (found,) = counts.nonzero()
            as_bytes = {int(n).to_bytes(order + 1, "big"): counts[n] for n in found}
            assert as_bytes == slow


def test_floors_of_real_text_fall_as_more_is_known():
    real = corpus("stdlib")
    floors = baselines.measure_baselines(
        Corpus("some", real.train[: 1 << 21], real.valid[: 1 << 18])
    )
    assert list(floors) == ["uniform", "unigram", "bigram", "trigram", "bz2", "lzma"]
    assert 8.0 == floors["uniform"] > floors["unigram"] > floors["bigram"] > floors["trigram"] > 1
    packed = bz2.compress(real.valid[: 1 << 18].tobytes(), 9)
    assert floors["bz2"] == 8 * len(packed) / (1 << 18)
    assert floors["lzma"] < floors["trigram"]


def test_nothing_gets_below_eight_bits_on_noise():
    """The trigram table pays for believing what it saw once; the others find nothing to believe."""
    noise = some_text(1 << 20, bytes(range(256)))
    floors = baselines.measure_baselines(Corpus("noise", noise[: -(1 << 17)], noise[-(1 << 17) :]))
    assert all(bits > 7.999 for bits in floors.values())
    assert all(bits < 8.1 for name, bits in floors.items() if name != "trigram")


def test_floors_of_a_tiny_text_are_still_numbers():
    floors = baselines.measure_baselines(Corpus("tiny", some_text(1), some_text(2)))
    assert all(math.isfinite(bits) for bits in floors.values())
