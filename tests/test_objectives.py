"""Training objectives: rates, shifts and targets are right, spans come back, nothing is lost."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import same
from hypothesis import given, settings
from hypothesis import strategies as st

from qllk.checks import check_ids
from qllk.text import objectives
from qllk.text.objectives import (
    IGNORED,
    _span_counts,
    check_lines,
    count_targets,
    labels,
    masked_token,
    next_token,
    pairs,
    restore_spans,
    seq2seq,
    span_corruption,
    span_vocabulary,
    token_losses,
)

FUZZ = settings(deadline=None, max_examples=60, derandomize=True)
RATES = st.floats(0.01, 1.0)
SPANS = st.floats(1.0, 8.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def letters(B, T, vocab_size=256):
    return torch.randint(vocab_size, (B, T), generator=generator(99))


def expect_share(hits, probability):
    """Within five standard deviations of a binomial."""
    n = hits.numel()
    assert abs(hits.sum().item() - n * probability) < 5 * math.sqrt(
        n * probability * (1 - probability)
    )


# ---------------------------------------------------------------- one shape, one loss

ALL = {
    "next_token": lambda ids: next_token(ids),
    "masked": lambda ids: masked_token(ids, generator()),
    "seq2seq": lambda ids: seq2seq(ids, ids[:, :9]),
    "span_corruption": lambda ids: span_corruption(ids, generator()),
}


@pytest.mark.parametrize("objective", ALL.values(), ids=ALL)
@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
def test_every_objective_returns_one_kind_of_batch(objective, kind):
    ids = letters(3, 40).to(kind)
    before = ids.clone()
    batch = objective(ids)
    assert all(x.ndim == 2 and not x.is_floating_point() for x in batch.inputs)
    assert batch.inputs[-1].shape == batch.targets.shape
    assert batch.targets.dtype == torch.int64
    assert torch.equal(ids, before)


VOCABULARY = {"next_token": 256, "masked": 257, "seq2seq": 257}


@pytest.mark.parametrize("name", ALL)
def test_no_id_lies_outside_the_vocabulary_that_is_stated_for_the_model(name):
    batch = ALL[name](letters(50, 40))
    size = VOCABULARY.get(name) or span_vocabulary(40)
    for ids in (*batch.inputs, batch.targets.where(batch.targets != IGNORED, 0)):
        check_ids(ids, size)
    assert max(ids.max() for ids in (*batch.inputs, batch.targets)) == size - 1  # and none is spare


@pytest.mark.parametrize("objective", ALL.values(), ids=ALL)
def test_one_loss_serves_all_and_asks_nothing_where_a_target_is_ignored(objective):
    targets = objective(letters(3, 40)).targets
    logits = torch.randn(*targets.shape, 300, dtype=torch.float64, requires_grad=True)
    total, asked = token_losses(logits, targets).sum(), targets != IGNORED
    probabilities = logits.softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    same(total, -(probabilities.log() * asked).sum())
    assert count_targets(targets) == asked.sum() > 0
    total.backward()
    assert torch.equal(logits.grad.abs().sum(-1) > 0, asked)


def test_micro_batches_add_up_to_the_loss_although_their_means_do_not():
    batch = masked_token(letters(4, 30), generator())
    logits = torch.randn(4, 30, 257, dtype=torch.float64)
    targets = [part.targets for part in batch.micro_batches(3)]
    sums = [
        token_losses(*pair).sum() for pair in zip(logits.split((2, 1, 1)), targets, strict=True)
    ]
    counts = list(map(count_targets, targets))
    whole = token_losses(logits, batch.targets).sum() / count_targets(batch.targets)
    same(sum(sums) / sum(counts), whole)
    of_means = sum(s / n for s, n in zip(sums, counts, strict=True)) / 3
    assert abs(of_means - whole) > 1e-3


def test_the_micro_batches_of_a_batch_are_its_rows_in_order():
    batch = span_corruption(letters(5, 20), generator())
    for whole, *parts in zip((*batch.inputs, batch.targets),
                             *((*part.inputs, part.targets) for part in batch.micro_batches(2)),
                             strict=True):  # fmt: skip
        assert [len(part) for part in parts] == [3, 2]
        assert torch.equal(torch.cat(parts), whole)


def test_targets_that_are_special_can_be_ignored():
    batch = span_corruption(letters(3, 40), generator())
    text = batch.ignore_specials()
    assert count_targets(text.targets) == 3 * _span_counts(40)[0]
    assert torch.equal(text.targets != IGNORED, batch.targets < 256)
    assert torch.equal(batch.ignore_specials(400).targets, batch.targets)


# ---------------------------------------------------------------- losses


def test_token_losses_are_minus_the_log_of_the_probability_of_the_target():
    logits = torch.randn(2, 3, 256, dtype=torch.float64)
    targets = torch.randint(256, (2, 3), dtype=torch.uint8)
    losses = token_losses(logits, targets)
    for row in range(2):
        for t in range(3):
            probabilities = logits[row, t].exp() / logits[row, t].exp().sum()
            assert losses[row, t].item() == pytest.approx(
                -probabilities[targets[row, t].item()].log()
            )


def test_token_losses_of_half_precision_logits_are_single():
    logits = torch.randn(1, 1, 256).bfloat16()
    losses = token_losses(logits, torch.zeros(1, 1, dtype=torch.uint8))
    assert losses.dtype == torch.float32
    assert token_losses(logits.double(), torch.zeros(1, 1)).dtype == torch.float64


# ---------------------------------------------------------------- next token


def test_the_next_token_is_the_input_one_place_later():
    batch = next_token(torch.tensor([[5, 6, 7, 8]]))
    assert batch.inputs[0].tolist() == [[5, 6, 7]]
    assert batch.targets.tolist() == [[6, 7, 8]]


def test_the_first_token_of_a_document_and_padding_are_not_asked_for():
    owners = torch.tensor([[0, 0, 1, 1, 1, -1, -1]])
    targets = next_token(letters(1, 7), owners).targets
    assert (targets != IGNORED).tolist() == [[True, False, True, True, False, False]]


@pytest.mark.parametrize("shape", [(1, 1), (5,), (2, 0)])
def test_without_a_next_token_there_is_nothing_to_ask(shape):
    with pytest.raises(ValueError, match=r"at least two per row; got \("):
        next_token(torch.zeros(shape, dtype=torch.long))


def test_documents_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"documents must have the shape of ids, \(1, 7\); got \(1, 6\)"
    ):
        next_token(letters(1, 7), torch.zeros(1, 6))


# ---------------------------------------------------------------- masked


def test_masking_hides_fifteen_in_a_hundred_and_of_these_eighty_ten_ten():
    ids = letters(200, 500)
    (inputs,), targets = masked_token(ids, generator())
    chosen = targets != IGNORED
    assert torch.equal(targets[chosen], ids[chosen])
    assert torch.equal(inputs[~chosen], ids[~chosen])
    expect_share(chosen, 0.15)
    was, now = ids[chosen], inputs[chosen]
    expect_share(now == 256, 0.8)
    expect_share((now != 256) & (now != was), 0.1 * 255 / 256)
    expect_share(now == was, 0.1 + 0.1 / 256)


def test_a_replaced_id_may_become_any_ordinary_one_equally_often():
    ids = torch.zeros(200, 500, dtype=torch.long)
    inputs = masked_token(ids, generator(), rate=1.0, vocab_size=8).inputs[0]
    for token in range(1, 8):
        expect_share(inputs == token, 0.1 / 8)


def test_places_are_masked_independently():
    chosen = masked_token(letters(200, 500), generator(), rate=0.3).targets != IGNORED
    expect_share(chosen[:, 1:] & chosen[:, :-1], 0.09)
    expect_share(chosen[:, 0], 0.3)
    expect_share(chosen[:, -1], 0.3)


def test_masking_depends_only_on_its_generator():
    first = masked_token(letters(2, 50), generator()).inputs[0]
    torch.rand(1)
    assert torch.equal(masked_token(letters(2, 50), generator()).inputs[0], first)
    assert not torch.equal(masked_token(letters(2, 50), generator(1)).inputs[0], first)


def test_something_is_asked_however_short_the_text():
    batches = [masked_token(letters(1, 2), generator(seed), rate=0.01) for seed in range(50)]
    assert all(count_targets(batch.targets) == 1 for batch in batches)
    assert len({(batch.targets != IGNORED).nonzero()[0, 1].item() for batch in batches}) == 2
    nowhere = masked_token(letters(1, 2), generator(), maskable=torch.zeros(1, 2).bool())
    assert count_targets(nowhere.targets) == 0


def test_what_must_not_be_masked_is_not():
    ids, allowed = letters(20, 50), torch.rand(20, 50) < 0.5
    batch = masked_token(ids, generator(), rate=1.0, maskable=allowed)
    assert torch.equal(batch.targets != IGNORED, allowed)
    assert torch.equal(batch.inputs[0][~allowed], ids[~allowed])
    with pytest.raises(ValueError, match="maskable must have the shape of ids"):
        masked_token(ids, generator(), maskable=allowed[:, 1:])


def test_the_mask_comes_after_the_vocabulary_unless_it_has_an_id():
    ids = letters(20, 50, vocab_size=64)
    assert masked_token(ids, generator(), vocab_size=64).inputs[0].max() == 64
    named = masked_token(ids, generator(), rate=1.0, vocab_size=64, mask_id=3).inputs[0]
    assert named.max() < 64
    assert (named == 3).float().mean() > 0.75


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.01, math.nan])
def test_a_rate_that_is_no_share_is_refused(rate):
    for objective in (masked_token, span_corruption):
        with pytest.raises(ValueError, match=r"rate .* must lie in \(0, 1\], got"):
            objective(letters(1, 9), generator(), rate=rate)


def test_ids_that_are_no_ordinary_ones_are_refused():
    for objective in (masked_token, span_corruption):
        with pytest.raises(ValueError, match=r"ids must lie in 0 … 255, got 256"):
            objective(torch.tensor([[256]]), generator())


# ---------------------------------------------------------------- sequence to sequence


def test_the_decoder_reads_what_it_should_have_said_one_place_before():
    (source, shifted), targets = seq2seq(
        torch.tensor([[1, 2]]), torch.tensor([[7, 8, 9]]), start=256
    )
    assert source.tolist() == [[1, 2]]
    assert shifted.tolist() == [[256, 7, 8]]
    assert targets.tolist() == [[7, 8, 9]]


def test_padding_of_a_target_is_not_asked_for():
    target = torch.tensor([[7, 8, 256], [7, 256, 256]])
    padded = seq2seq(target, target, pad=256).targets
    assert padded.tolist() == [[7, 8, IGNORED], [7, IGNORED, IGNORED]]
    assert count_targets(seq2seq(target, target).targets) == 6


def test_source_and_target_need_as_many_rows():
    with pytest.raises(ValueError, match=r"equally many rows; got \(2, 3\) and \(1, 3\)"):
        seq2seq(letters(2, 3), letters(1, 3))


# ---------------------------------------------------------------- span corruption


def test_one_sentinel_stands_for_each_span_and_one_more_ends_the_target(monkeypatch):
    lost = torch.tensor([[0, 1, 1, 0, 0, 1], [1, 0, 0, 1, 1, 0]]).bool()
    monkeypatch.setattr(objectives, "_random_spans", lambda *args: lost)
    ids = torch.arange(12).view(2, 6)
    (source, shifted), targets = span_corruption(ids, generator(), vocab_size=100)
    assert source.tolist() == [[0, 101, 3, 4, 102], [101, 7, 8, 102, 11]]
    assert targets.tolist() == [[101, 1, 2, 102, 5, 103], [101, 6, 102, 9, 10, 103]]
    assert shifted.tolist() == [[100, 101, 1, 2, 102, 5], [100, 101, 6, 102, 9, 10]]


@FUZZ
@given(st.integers(1, 4), st.integers(1, 80), RATES, SPANS, st.integers(0, 2**31))
def test_span_corruption_has_an_exact_inverse(B, T, rate, span, seed):
    ids = letters(B, T)
    (source, shifted), targets = span_corruption(ids, generator(seed), rate=rate, span=span)
    restored = [restore_spans(s, t) for s, t in zip(source, targets, strict=True)]
    assert torch.equal(torch.stack(restored), ids)
    lost, spans = _span_counts(T, rate, span)
    assert source.shape == (B, T - lost + spans)
    assert targets.shape == shifted.shape == (B, lost + spans + 1)
    highest = span_vocabulary(T, rate, span) - 1
    assert targets.max() == highest == 256 + spans + 1
    assert source.max() == highest - 1


@FUZZ
@given(st.integers(1, 80), RATES, SPANS, st.integers(0, 2**31))
def test_every_row_loses_exactly_the_stated_ids_and_spans(T, rate, span, seed):
    lost = objectives._random_spans(5, T, generator(seed), rate, span)
    begins = lost & ~torch.cat((torch.zeros(5, 1).bool(), lost[:, :-1]), dim=1)
    hidden, spans = _span_counts(T, rate, span)
    assert lost.shape == (5, T)
    assert (lost.sum(1) == hidden).all()
    assert (begins.sum(1) == spans).all()


@pytest.mark.parametrize("T", [20, 50, 100, 512, 4096])
def test_long_rows_lose_the_same_share_because_spans_are_not_capped(T):
    lost, spans = _span_counts(T)
    assert lost == round(0.15 * T)
    assert spans == round(lost / 3)


def test_spans_lie_anywhere_and_have_random_lengths():
    lost = objectives._random_spans(20_000, 40, generator(), 0.15, 3.0)  # 6 ids in 2 spans
    shares = lost.float().mean(0)
    assert shares.min() > 0.05  # both ends included
    assert shares.max() < 0.25
    same(shares, shares.flip(0), atol=0.02)  # neither end is preferred
    begin, end = lost.long().argmax(1), (lost & ~F.pad(lost[:, 1:], (0, 1))).long().argmax(1)
    for length in range(1, 6):  # of 6 = a + b every split is equally likely
        expect_share(end - begin + 1 == length, 0.2)


def test_spans_depend_only_on_their_generator():
    first = objectives._random_spans(3, 50, generator(), 0.15, 3.0)
    torch.rand(1)
    assert torch.equal(objectives._random_spans(3, 50, generator(), 0.15, 3.0), first)
    assert not torch.equal(objectives._random_spans(3, 50, generator(1), 0.15, 3.0), first)
    assert not torch.equal(first[0], first[1])


def test_a_span_shorter_than_one_is_refused():
    with pytest.raises(ValueError, match=r"at least 1, got 0\.5"):
        span_corruption(letters(1, 9), generator(), span=0.5)


def test_spans_of_another_row_are_refused():
    with pytest.raises(ValueError, match=r"must start with a sentinel, an id above 256; got 7"):
        restore_spans(torch.tensor([1, 257]), torch.tensor([7, 257]))
    with pytest.raises(ValueError, match=r"source has sentinel 258, the target only \[257\]"):
        restore_spans(torch.tensor([257, 1, 258]), torch.tensor([257, 5]))


# ---------------------------------------------------------------- lines of two fields

PAIRS = b"ne\t1\ntwo four\t24\nsix\t6\nthr"
LABELS = b"ay\t-\nwhat a day\t+\nno\t-\nan"


def window(text, rows=1):
    return torch.tensor([list(text)] * rows, dtype=torch.uint8)


def text_of(ids):
    return bytes(id for id in ids.tolist() if 0 <= id < 256)


def test_each_complete_line_is_a_pair_of_its_own():
    (source, shifted, text), targets = pairs(window(PAIRS, rows=2))
    assert [text_of(row) for row in source] == [b"two four", b"six"] * 2
    assert [text_of(row) for row in targets] == [b"24\n", b"6\n"] * 2
    assert torch.equal(text, source != 257)
    assert shifted[0].tolist() == [256, *b"24"]
    assert shifted[1].tolist() == [256, *b"6\n"]  # what follows the newline does not count
    assert targets[1].tolist() == [*b"6\n", IGNORED]


def test_a_label_is_told_where_the_first_mark_stands():
    (ids, text), targets = labels(window(LABELS))
    assert ids.tolist() == [[256, *b"what a day", 257], [256, *b"no", 257, *[258] * 8]]
    assert torch.equal(text, ids != 258)
    assert targets[:, 0].tolist() == list(b"+-")
    assert (targets[:, 1:] == IGNORED).all()


@pytest.mark.parametrize("ask", [pairs, labels])
def test_a_window_without_a_complete_line_has_no_targets(ask):
    batch = ask(window(b"in the middle of a line\tof"))
    assert count_targets(batch.targets) == 0
    assert all(len(rows) == 1 and rows.shape[1] for rows in (*batch.inputs, batch.targets))


def test_a_label_of_two_bytes_is_refused():
    with pytest.raises(ValueError, match="a label must be a single byte, got b'no'"):
        labels(window(b"x\ty\nwords\tno\n"))


def lines(text):
    return np.frombuffer(text, np.uint8)


def test_lines_that_fit_into_half_a_window_pass():
    check_lines(lines(b"cut\nab\tc\nde\tf\ncut"), window=10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"no line at all", "need a text of lines"),
        (b"x\nab\tc\n\nde\tf\n", "'' has 0 tabs"),
        (b"x\nab\tc\td\n", r"'ab\\tc\\td' has 2 tabs"),
        (b"x\nab\tc\nabcde\tf\n", "the longest line has 8 bytes.*at least 16"),
    ],
)
def test_other_texts_are_refused_before_training(text, message):
    with pytest.raises(ValueError, match=message):
        check_lines(lines(text), window=15)
