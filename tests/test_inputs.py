"""Hashed n-grams and recall: rows by hash, sparse gradients, what followed, and no future."""

from dataclasses import replace

import pytest
import torch
from helpers import CONV, built, same

from qllk.model import addresses, inputs
from qllk.model.families import build
from qllk.model.inputs import Lookup, Ngrams, Recall, to_rows
from qllk.probes import state_bytes, visibility
from qllk.spec import Ngrams as NgramsSpec
from qllk.spec import Recall as RecallSpec
from qllk.spec import Spec

TEXT = b"def f(first): return first\ndef g(first): return first\n"
RECALL = RecallSpec((2, 4, "word"), addresses=64, rows=32)
SPEC = Spec(
    d_model=16,
    layers=1,
    mixers=(CONV,),
    ngrams=NgramsSpec((2, 3, "words-2"), rows=32),
    recall=RECALL,
)


def ids_of(text):
    return torch.tensor([list(text)])


def filled(table):
    torch.nn.init.normal_(table.weight)
    return table


# ---------------------------------------------------------------- rows


def test_a_hash_chooses_a_row_by_its_highest_bits():
    hashes = torch.tensor([0, 1, (1 << 33) * 5, -1, -(1 << 63)])
    assert to_rows(hashes, 7).tolist() == [0, 0, 5, (2**31 - 1) % 7, (1 << 30) % 7]
    assert to_rows(hashes, 1).tolist() == [0] * 5


def test_a_lookup_sums_one_row_of_each_table():
    table = filled(Lookup(3, 8, 4))
    hashes = torch.randint(-(1 << 62), 1 << 62, (2, 3, 5))
    rows = to_rows(hashes, 8)
    expected = sum(table.weight[8 * k + rows[:, k]] for k in range(3))
    same(table(hashes), expected, atol=1e-6)


def test_the_gradient_of_a_lookup_is_that_of_a_dense_table_and_names_only_rows_that_were_read():
    table = filled(Lookup(3, 1000, 4))
    hashes = torch.randint(0, 1 << 62, (2, 3, 50))
    hashes[:, :, 7] = hashes[:, :, 3]
    weight = torch.randn(2, 50, 4)
    (table(hashes) * weight).sum().backward()
    assert table.weight.grad.is_sparse
    (named,) = table.weight.grad._indices()
    assert (named[1:] > named[:-1]).all()
    found = table.weight.grad.coalesce()
    rows = to_rows(hashes, 1000) + 1000 * torch.arange(3)[:, None]
    assert set(found.indices()[0].tolist()) == set(rows.flatten().tolist())
    dense = torch.zeros(3000, 4).index_add(
        0, rows.transpose(1, 2).flatten(), weight.repeat_interleave(3, dim=1).view(-1, 4)
    )
    same(found.to_dense(), dense, atol=1e-5)


def test_dropout_leaves_out_whole_rows_and_keeps_the_mean():
    table = Lookup(2, 100, 3, dropout=0.25)
    torch.nn.init.ones_(table.weight)
    hashes = torch.randint(0, 1 << 62, (1, 2, 20_000))
    y = table(hashes)
    assert (y == y[..., :1]).all(), "a row is left out as a whole"
    same(y.unique(), torch.tensor([0.0, 4 / 3, 8 / 3]), atol=1e-6)
    assert y.mean().item() == pytest.approx(2.0, abs=0.03)
    same(table.eval()(hashes), torch.full_like(y, 2.0), atol=0)


def test_the_gradient_under_dropout_is_that_of_the_rows_that_were_read():
    table = filled(Lookup(3, 40, 4, dropout=0.6))
    hashes, weight = torch.randint(0, 1 << 62, (2, 3, 9)), torch.randn(2, 9, 4)
    table.dropout.generator = torch.Generator().manual_seed(0)
    (table(hashes) * weight).sum().backward()

    table.dropout.generator.manual_seed(0)
    share = table.dropout(torch.ones(18, 3)).view(2, 9, 3)
    rows = (to_rows(hashes, 40) + 40 * torch.arange(3)[:, None]).transpose(1, 2)
    dense = torch.zeros(120, 4).index_add(
        0, rows.flatten(), (share[..., None] * weight[:, :, None]).view(-1, 4)
    )
    same(table.weight.grad.to_dense(), dense, atol=1e-5)
    assert set(table.weight.grad._indices()[0].tolist()) == set(rows[share > 0].tolist())


def test_dropout_of_ngrams_is_an_option_of_theirs():
    ngrams = replace(SPEC.ngrams, dropout=0.5)
    model, ids = build(SPEC.but(ngrams=ngrams), seed=0), ids_of(TEXT)
    filled(model.ngrams.table)
    assert not torch.equal(model(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))
    with pytest.raises(ValueError, match=r"Ngrams: dropout must lie in \[0, 1\), got 1.0"):
        replace(ngrams, dropout=1.0)


def test_a_new_model_reads_zeros_from_its_tables():
    model = build(SPEC, seed=0)
    assert not model.ngrams.table.weight.any()
    assert not model.recall.table.weight.any()


# ---------------------------------------------------------------- what followed


def recall_of(contexts=(2,), addresses=256, vocab_size=256):
    recall = Recall(8, RecallSpec(contexts, addresses, rows=16), vocab_size)
    filled(recall.table)
    return recall


def test_a_recall_finds_what_followed_the_same_context_before():
    _, found, _ = recall_of()(ids_of(b"xaby abz abz ab"))
    last, other = ([chr(i) if i >= 0 else "" for i in column] for column in found[0].T.tolist())
    assert last[6] == "y"  # after the second "ab"
    assert other[6] == ""
    assert (last[10], other[10]) == ("z", "y")
    assert (last[14], other[14]) == ("z", "y")


def test_a_recall_equals_a_python_dictionary():
    ids = torch.randint(3, (1, 300))
    _, found, _ = recall_of(contexts=(3,), addresses=4096)(ids)
    seen, text = {}, ids[0].tolist()
    for t in range(300):
        if t:
            seen.setdefault(tuple(text[max(0, t - 3) : t]), []).append(text[t])
        history = seen.get(tuple(text[max(0, t - 2) : t + 1]), [])
        last = history[-1] if history else -1
        other = next((x for x in reversed(history) if x != last), -1)
        assert found[0, t].tolist() == [last, other], t


def test_a_recall_votes_for_what_it_found_and_for_nothing_else():
    recall, x = recall_of(), torch.randn(1, 15, 8)
    _, found, _ = recall(ids_of(b"xaby abz abz ab"))
    logits = recall.vote(torch.zeros(1, 15, 256), x, found)
    assert logits[0, 14].nonzero().flatten().tolist() == [ord("y"), ord("z")]
    same(logits[0, 14, ord("z")], recall.strength(x)[0, 14, 0], atol=1e-6)
    assert not logits[0, 0].any()


def test_the_state_of_a_recall_is_constant_and_takes_bytes_for_bytes():
    recall, state = recall_of(contexts=(2, "word"), addresses=100), None
    sizes = set()
    for _ in range(3):
        _, _, state = recall(ids_of(TEXT), state)
        sizes.add(state_bytes(state.rows))
    assert sizes == {5 * 2 * 100}
    assert recall_of(vocab_size=300)(ids_of(TEXT))[2].rows.dtype == torch.int32


def test_ids_above_a_byte_are_recalled_whole():
    recall = recall_of(vocab_size=70_000)
    _, found, _ = recall(torch.tensor([[1, 2, 69_999, 5, 1, 2]]))
    assert found[0, 5].tolist() == [69_999, -1]


def test_a_context_finds_nothing_at_an_address_that_another_context_has_taken():
    recall = recall_of(addresses=1)  # every context shares the only row
    ids = torch.randint(256, (1, 500))
    _, found, _ = recall(ids)
    assert (found >= 0).float().mean() < 0.05  # one in 256 by chance
    _, found, _ = recall(torch.zeros(1, 500, dtype=torch.long))
    assert (found[0, 10:, 0] == 0).all()  # its own row, again and again


# ---------------------------------------------------------------- no future


def test_the_x_ray_of_a_model_that_hashes_its_input_is_clean_and_complete():
    model = built(SPEC.but(ngrams=None)).double()
    ids = ids_of(TEXT)
    seen = visibility(model, len(TEXT), ids)
    assert not seen.triu(1).any()
    far = TEXT.rindex(b"first") + 2  # the context "fi" was followed by "r" long before
    assert seen[far - 1, TEXT.index(b"first") + 2]


def test_a_write_at_the_address_of_its_own_successor_is_a_leak_and_is_seen(monkeypatch):
    runs = addresses.addressed_runs

    def misaligned(read, write, x, S, owners):
        return runs(read, read, x.roll(-1, dims=1), S, owners)

    model, ids = built(SPEC).double(), ids_of(TEXT)
    assert not visibility(model, len(TEXT), ids).triu(1).any()
    monkeypatch.setattr(inputs, "addressed_runs", misaligned)
    seen = visibility(model, len(TEXT), ids)
    assert seen.diagonal(1).all()  # every position sees its own target


def test_a_model_with_hashed_contexts_refuses_packed_documents():
    for spec in (SPEC.but(recall=None), SPEC.but(ngrams=None)):
        with pytest.raises(ValueError, match=r"(Ngrams|Recall) cannot be masked"):
            build(spec)(ids_of(TEXT), documents=torch.zeros(1, len(TEXT)))


def test_an_unknown_context_is_named_when_the_model_is_built():
    for part in (NgramsSpec(("line",), rows=8), RecallSpec(("line",), addresses=8, rows=8)):
        field = type(part).__name__.lower()
        with pytest.raises(ValueError, match=rf"{type(part).__name__}: unknown context 'line'"):
            build(SPEC.but(**{field: part}))


def test_the_state_of_ngrams_is_a_few_ids():
    ngrams = Ngrams(8, NgramsSpec((2, 7), rows=16))
    y, state = ngrams(ids_of(TEXT))
    assert y.shape == (1, len(TEXT), 8)
    assert state_bytes(state) == 8 * (6 + 4)
