"""Training objectives: rates, shifts and targets are right, spans come back, nothing is lost."""

import math
import sys
from itertools import chain, count, islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import same
from hypothesis import given, settings
from hypothesis import strategies as st

from qllk.__main__ import main
from qllk.checks import check_ids
from qllk.model.families import build
from qllk.model.kernels import causal_mask, document_mask, softmax_attention
from qllk.presets import PRESETS
from qllk.text import corpora, objectives
from qllk.text.corpora import corpus, documents
from qllk.text.objectives import (
    IGNORED,
    count_targets,
    masked_token,
    next_token,
    restore_spans,
    seq2seq,
    span_corruption,
    span_counts,
    span_vocabulary,
    token_losses,
)
from qllk.text.windows import iterate_windows, pack, shard

FUZZ = settings(deadline=None, max_examples=60, derandomize=True)
RATES = st.floats(0.01, 1.0)
SPANS = st.floats(1.0, 8.0)
TEXTS = st.lists(st.binary(max_size=30), max_size=12)  # documents, some of them empty


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def letters(B, T, vocab_size=256):
    return torch.randint(vocab_size, (B, T), generator=generator(99))


def expect_share(hits, chance):
    """Within five standard deviations of a binomial."""
    n = hits.numel()
    assert abs(hits.sum().item() - n * chance) < 5 * math.sqrt(n * chance * (1 - chance))


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
def test_no_id_lies_outside_the_vocabulary_that_the_model_is_told_to_have(name):
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
    chances = logits.softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    same(total, -(chances.log() * asked).sum())
    assert count_targets(targets) == asked.sum() > 0
    total.backward()
    assert torch.equal(logits.grad.abs().sum(-1) > 0, asked)


def test_parts_of_a_batch_add_up_to_its_loss_although_their_means_do_not():
    batch = masked_token(letters(4, 30), generator())
    logits = torch.randn(4, 30, 257, dtype=torch.float64)
    targets = [part.targets for part in batch.parts(3)]
    sums = [
        token_losses(*pair).sum() for pair in zip(logits.split((2, 1, 1)), targets, strict=True)
    ]
    counts = list(map(count_targets, targets))
    whole = token_losses(logits, batch.targets).sum() / count_targets(batch.targets)
    same(sum(sums) / sum(counts), whole)
    of_means = sum(s / n for s, n in zip(sums, counts, strict=True)) / 3
    assert abs(of_means - whole) > 1e-3


def test_the_parts_of_a_batch_are_its_rows_in_order():
    batch = span_corruption(letters(5, 20), generator())
    for whole, *parts in zip((*batch.inputs, batch.targets),
                             *((*part.inputs, part.targets) for part in batch.parts(2)),
                             strict=True):  # fmt: skip
        assert [len(part) for part in parts] == [3, 2]
        assert torch.equal(torch.cat(parts), whole)


def test_of_an_answer_the_text_alone_can_be_asked():
    batch = span_corruption(letters(3, 40), generator())
    text = batch.of_text()
    assert count_targets(text.targets) == 3 * span_counts(40)[0]
    assert torch.equal(text.targets != IGNORED, batch.targets < 256)
    assert torch.equal(batch.of_text(400).targets, batch.targets)


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


def test_masking_is_drawn_by_its_generator_alone():
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
    lost, spans = span_counts(T, rate, span)
    assert source.shape == (B, T - lost + spans)
    assert targets.shape == shifted.shape == (B, lost + spans + 1)
    highest = span_vocabulary(T, rate, span) - 1
    assert targets.max() == highest == 256 + spans + 1
    assert source.max() == highest - 1


@FUZZ
@given(st.integers(1, 80), RATES, SPANS, st.integers(0, 2**31))
def test_every_row_loses_exactly_so_many_ids_in_exactly_so_many_spans(T, rate, span, seed):
    lost = objectives._random_spans(5, T, generator(seed), rate, span)
    begins = lost & ~torch.cat((torch.zeros(5, 1).bool(), lost[:, :-1]), dim=1)
    hidden, spans = span_counts(T, rate, span)
    assert lost.shape == (5, T)
    assert (lost.sum(1) == hidden).all()
    assert (begins.sum(1) == spans).all()


@pytest.mark.parametrize("T", [20, 50, 100, 512, 4096])
def test_long_rows_lose_the_same_share_because_spans_are_not_capped(T):
    lost, spans = span_counts(T)
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


def test_spans_are_drawn_by_their_generator_alone():
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


# ---------------------------------------------------------------- packing


def arrays(texts):
    return [np.frombuffer(text, np.uint8) for text in texts]


@FUZZ
@given(TEXTS, st.integers(1, 20))
def test_packed_rows_ask_for_every_id_but_the_first_of_each_document_once(texts, window):
    rows = list(pack(arrays(texts), window))
    asked = {}
    for ids, owners in rows:
        assert ids.shape == owners.shape == (window + 1,)
        batch = next_token(ids[None], owners[None])
        kept = batch.targets[0] != IGNORED
        for owner, token in zip(owners[1:][kept].tolist(), batch.targets[0][kept], strict=True):
            asked.setdefault(owner, []).append(token.item())
    assert asked == {n: list(text[1:]) for n, text in enumerate(texts) if len(text) > 1}
    assert all((owners >= 0).all() for _, owners in rows[:-1])  # only the last row is padded
    assert len(rows) == math.ceil(max(0, len(b"".join(texts)) - 1) / window)


def test_packing_keeps_the_kind_of_ids_and_reads_no_further_than_it_must():
    endless = (np.full(5, number % 7, np.int32) for number in count())
    rows = list(islice(pack(endless, 8), 3))
    assert rows[0][0].dtype == torch.int32
    assert rows[0][0].tolist() == [0] * 5 + [1] * 4
    assert rows[1][1].tolist() == [1, 1, 2, 2, 2, 2, 2, 3, 3]
    assert next(endless)[0] == 5  # three rows take 25 ids, which are five documents


def test_a_window_below_one_cannot_be_packed():
    with pytest.raises(ValueError, match="pack: window must be a whole number above 0, got 0"):
        list(pack(arrays([b"abc"]), 0))


def test_attention_with_a_document_mask_reads_each_document_as_if_alone():
    owners = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, -1, -1], [4] * 5 + [5] * 6])
    q, k, v = torch.randn(3, 2, 3, 11, 4, dtype=torch.float64)
    keep = document_mask(owners) & causal_mask(11, 11)
    assert keep.any(-1).all()
    out = softmax_attention(q, k, v, keep)
    for row in range(2):
        for owner in owners[row].unique():
            own = owners[row] == owner
            x = [t[row : row + 1, :, own] for t in (q, k, v)]
            alone = softmax_attention(*x, causal_mask(own.sum(), own.sum()))
            same(out[row : row + 1, :, own], alone)
    without = softmax_attention(q, k, v, causal_mask(11, 11))
    assert (without - out)[0, :, 3:].abs().amin() > 1e-6


# ---------------------------------------------------------------- shares of the work


@FUZZ
@given(st.integers(0, 60), st.integers(1, 17))
def test_shares_are_disjoint_complete_and_even(n, world):
    shares = [list(shard(range(n), rank, world)) for rank in range(world)]
    assert sorted(chain(*shares)) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 5, 7, 11, 13, 14, 16])
def test_over_all_ranks_every_window_comes_exactly_once(world):
    text = (np.arange(1001) % 251).astype(np.uint8)
    shares = [shard(iterate_windows(text, 1, 10), rank, world) for rank in range(world)]
    targets = [x for share in shares for window in share for x in window[0, 1:].tolist()]
    assert sorted(targets) == sorted(text[1:].tolist())


def test_a_shuffled_order_is_shared_out_as_well():
    orders = [torch.randperm(50, generator=generator(3)).tolist() for _ in range(3)]
    shares = [list(shard(order, rank, 3)) for rank, order in enumerate(orders)]
    assert sorted(chain(*shares)) == list(range(50))
    assert shares[0] != sorted(shares[0])


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused(rank, world):
    with pytest.raises(ValueError, match=f"rank must lie in .* world of {world}, got {rank}"):
        shard(range(9), rank, world)


# ---------------------------------------------------------------- streams


class FakeDatasets:
    """Stands in for the package: remembers what was asked for, and counts what was read."""

    def __init__(self, rows=None, error=None):
        self.rows, self.error, self.asked, self.read = rows, error, [], 0

    def load_dataset(self, place, part, **options):
        self.asked.append((place, part, options))
        if self.error:
            raise self.error
        return self

    def __iter__(self):
        for row in self.rows or ({"text": f"document {n}"} for n in count()):
            self.read += 1
            yield row


@pytest.fixture
def fake(monkeypatch):
    def install(**options):
        package = FakeDatasets(**options)
        monkeypatch.setitem(sys.modules, "datasets", package)
        return package

    return install


def test_documents_are_streamed_as_they_are_asked_for(fake):
    package = fake()
    stream = documents("fineweb-edu")
    assert [bytes(text) for text in islice(stream, 2)] == [b"document 0", b"document 1"]
    assert package.read == 2
    assert package.asked == [
        (
            "HuggingFaceFW/fineweb-edu",
            "CC-MAIN-2024-10",
            {"split": "train", "streaming": True},
        )
    ]


def test_a_stream_can_be_shared_packed_and_asked_about(fake):
    fake()
    ids, owners = next(pack(shard(documents(), 1, 2), 30))
    assert bytes(ids.numpy()) == b"document 1document 3document 5d"
    assert count_targets(next_token(ids[None], owners[None]).targets) == 27


def test_a_model_learns_from_its_share_of_a_stream_document_by_document(fake):
    fake()
    model = build(PRESETS["gpt-nano"].but(d_model=16, layers=1), seed=0)
    adam = torch.optim.Adam(model.parameters(), lr=3e-2)
    losses = []
    for ids, owners in islice(pack(shard(documents(), 1, 2), 40), 40):
        batch = next_token(ids[None], owners[None])
        logits = model(*batch.inputs, documents=owners[None, :-1])
        loss = token_losses(logits, batch.targets).sum() / count_targets(batch.targets)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 1.5 < losses[0]


def test_a_stream_becomes_a_corpus_once(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "STREAM_BYTES", 1000)
    package = fake()
    found = corpus("fineweb-edu")
    text = found.train.tobytes() + found.valid.tobytes()
    assert text.startswith(b"document 0\ndocument 1\n")
    assert 1000 <= len(text) < 1020
    assert found.name == found.source == "fineweb-edu"
    assert package.read == text.count(b"\n")
    assert corpus("fineweb-edu").fingerprint == found.fingerprint
    assert len(package.asked) == 1


def test_a_folder_of_parquet_is_streamed_by_the_real_package(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = ["one", "zwei ü", "", "three\nlines"]
    for n, piece in enumerate((texts[:2], texts[2:])):
        table = arrow.table({"text": piece, "score": [1] * len(piece)})
        parquet.write_table(table, tmp_path / f"{n}.parquet")
    assert [bytes(text).decode() for text in documents(tmp_path)] == texts
    with pytest.raises(ValueError, match="no text in column 'words'; the columns are score, text"):
        next(documents(tmp_path, column="words"))
    with pytest.raises(ValueError, match="no text in column 'score'"):
        next(documents(tmp_path, column="score"))


def test_without_the_package_the_message_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QLLK_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)  # which is how Python says "not installed"
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '.\[text\]'.*'stdlib'"):
        documents()
    assert main(["train", "--corpus", "fineweb-edu", "--steps", "1"]) == 1
    assert "pip install -e '.[text]'" in capsys.readouterr().err


def test_a_stream_out_of_reach_says_what_works_without_a_network(fake):
    fake(error=ConnectionError("Couldn't reach it"))
    with pytest.raises(ConnectionError, match=r"'fineweb-edu' could not be reached.*'stdlib'"):
        documents()
