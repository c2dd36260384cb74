"""Windows, packed rows and shares of the work: every id but the first is a target once."""

import math
from itertools import chain, count, islice

import numpy as np
import pytest
import torch
from helpers import same
from hypothesis import given, settings
from hypothesis import strategies as st

from qllk.model.kernels import softmax_attention
from qllk.model.masks import Mask, causal_mask
from qllk.text.objectives import IGNORED, next_token
from qllk.text.windows import Documents, iterate_windows, pack, sample_windows, shard

FUZZ = settings(deadline=None, max_examples=60, derandomize=True)
TEXTS = st.lists(st.binary(max_size=30), max_size=12)  # documents, some of them empty


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- windows


def drawn_windows(seed, rows=64):
    numbers = np.arange(200, dtype=np.uint8)
    return sample_windows(numbers, rows, 9, generator(seed))


def test_windows_are_pieces_of_the_text_with_the_byte_that_follows():
    drawn = drawn_windows(0)
    assert drawn.shape == (64, 10)
    assert drawn.dtype == torch.uint8
    assert (drawn.diff(dim=1) == 1).all()


def test_windows_depend_only_on_their_generator():
    first = drawn_windows(0)
    torch.rand(1)
    assert torch.equal(drawn_windows(0), first)
    assert not torch.equal(drawn_windows(1), first)


def test_every_start_can_be_drawn():
    assert set(drawn_windows(0, rows=5000)[:, 0].tolist()) == set(range(191))


def test_drawing_from_a_mapped_file_reads_only_the_windows(tmp_path):
    path = tmp_path / "large.bin"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing: a copy of it would fit nowhere
    large = np.memmap(path, np.uint8, mode="r")
    drawn = sample_windows(large, 4, 100, generator())
    assert drawn.shape == (4, 101)
    assert drawn.sum() == 0
    drawn[0, 0] = 1  # the batch is its own memory, not the file's
    assert next(iterate_windows(large, 2, 100)).shape == (2, 101)


@pytest.mark.parametrize("size", [2, 9, 10, 11, 12, 31, 100, 101, 102])
@pytest.mark.parametrize("rows", [1, 4])
def test_all_windows_hold_every_byte_but_the_first_once_as_a_target(size, rows):
    text = np.arange(size, dtype=np.uint8)
    batches = list(iterate_windows(text, rows, 10))
    targets = torch.cat([batch[:, 1:].flatten() for batch in batches])
    assert targets.tolist() == list(range(1, size))
    assert all(batch.shape[0] <= rows and batch.shape[1] <= 11 for batch in batches)
    assert all(((batch[:, 1:] - batch[:, :-1]) == 1).all() for batch in batches)


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


def test_attention_with_a_document_mask_reads_each_document_by_itself():
    owners = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, -1, -1], [4] * 5 + [5] * 6])
    q, k, v = torch.randn(3, 2, 3, 11, 4, dtype=torch.float64)
    mask = Mask(documents=owners).table(11, 11)
    assert mask.any(-1).all()
    out = softmax_attention(q, k, v, mask)
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


def test_the_numbers_of_documents_are_drawn_for_the_same_windows_as_the_text():
    sizes = [5, 1, 30, 2, 12]
    text = np.repeat(np.arange(5, dtype=np.uint8), sizes)
    documents = Documents(np.cumsum(sizes))
    assert len(documents) == len(text) == 50
    np.testing.assert_array_equal(documents[3:40], text[3:40])
    drawn, numbers = (sample_windows(each, 20, 9, generator(3)) for each in (text, documents))
    torch.testing.assert_close(numbers, drawn.long())


def test_the_share_of_padding_is_that_of_rows_with_one_document_each():
    # Rows of 8: 5 ids in one row, 1 in one, 30 in four, 2 in one and 12 in two.
    assert Documents(np.cumsum([5, 1, 30, 2, 12])).padding_share(8) == pytest.approx(1 - 50 / 72)
    assert Documents([8, 24]).padding_share(8) == 0
