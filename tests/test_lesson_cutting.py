"""Lesson 17: its pieces, its rows, its copies, and the verdicts of its claims."""

import numpy as np
import pytest

from qllk.lab import ledger
from qllk.lab.lessons import cutting
from qllk.lab.lessons.exercises import cutting as exercises
from qllk.lab.pictures.charts import page_html
from qllk.lab.show import TEXT
from qllk.study.figures import digest
from qllk.text import prepare
from qllk.text.objectives import IGNORED, next_token
from qllk.text.tokens import BPE, Characters, count_pieces
from qllk.text.windows import pack

CLEARLY = {"characters": [3.7, 3.6, 3.8], "bpe-512": [3.3, 3.2, 3.3]}
SHORTER = {"characters": 1.0, "bpe-512": 2.1}


def verdicts(bits=CLEARLY, lengths=SHORTER, rows=cutting.rows_as_published):
    found = ledger.judge(cutting.CLAIMS, cutting.Evidence(bits, lengths, rows))
    return {finding.id: finding.verdict for finding in found}


# ---------------------------------------------------------------- claims


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        (cutting.rows_if_cut, "holds"),
        (cutting.rows_as_published, "holds in part"),
        (cutting.rows_one_each, "does not hold"),
    ],
)
def test_the_claim_of_packing_is_judged_by_its_rows(rows, verdict):
    assert verdicts(rows=rows)["L31"] == verdict


def test_the_claim_of_merges_needs_fewer_ids_and_fewer_bits():
    equal = {"characters": [3.7, 3.6, 3.8], "bpe-512": [3.6, 3.8, 3.7]}
    assert verdicts()["L58"] == "holds"
    assert verdicts(bits=equal)["L58"] == "holds in part"
    assert verdicts(bits=equal, lengths=dict.fromkeys(SHORTER, 1.0))["L58"] == "does not hold"


def test_a_tokenizer_that_merges_nothing_is_no_better_than_characters():
    text = b"plain letters, as long as they are plain ones"
    kinds = {"characters": Characters.train(text), "bpe-512": BPE(())}
    lengths = {name: len(text) / len(kind.encode(text)) for name, kind in kinds.items()}
    equal = {name: [3.7, 3.6, 3.8] for name in CLEARLY}
    assert verdicts(equal, lengths)["L58"] == "does not hold"


# ---------------------------------------------------------------- pieces


def test_merges_by_hand_are_those_of_hugging_face():
    text = cutting.PASSAGE.encode()
    bpe = BPE.train(text, 256 + 60)
    pieces = list(count_pieces(text))
    by_hand = [list(piece) for piece in pieces]
    for new, pair in enumerate(bpe.merges, 256):
        by_hand = [exercises.merge(ids, pair, new) for ids in by_hand]
    by_hand = [id for ids in by_hand for id in ids]
    assert by_hand == cutting.hugging_face_ids(bpe, pieces)
    assert by_hand == [id for piece in pieces for id in bpe.encode(piece).tolist()]


def test_a_corpus_in_pieces_is_the_same_text():
    text = cutting.excerpt(1 << 14, 1 << 13)
    assert text.train[-1] == text.valid[-1] == ord("\n")
    assert len(text.train) <= 1 << 14
    found = cutting.encode(text, BPE.train(text.train, 300))
    assert found.tokenizer.decode(found.train) == text.train.tobytes()
    assert found.bytes_per_id == len(text.valid) / len(found.valid) > 1.1


# ---------------------------------------------------------------- rows


def test_the_published_packing_never_asks_for_the_first_id_of_a_document():
    ids, targets = cutting.pack_as_published([[1, 2, 3], [4, 5, 6], [7, 8]], 12, eos=0)
    assert ids.tolist() == [[1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 0, 0]]
    assert set(range(9)) - set(targets.flatten().tolist()) == {1, 4, 7}


def test_the_published_packing_teaches_an_end_where_a_document_was_cut():
    ids, targets = cutting.pack_as_published([[1, 2, 3, 4, 5, 6]], 4, eos=0)
    assert ids.tolist() == [[1, 2, 3, 4]]
    assert targets.tolist() == [[2, 3, 4, 0]]


def test_the_published_packing_keeps_documents_whole_and_ignores_padding():
    ids, targets = cutting.pack_as_published([[1, 2, 3], [4, 5, 6], [7]], 6, eos=0)
    assert ids.tolist() == [[1, 2, 3, 0, 0, 0], [4, 5, 6, 0, 7, 0]]
    assert (targets[ids == 0] == IGNORED).all()


def test_the_library_asks_for_every_id_between_two_separators():
    documents = [np.array([0, *ids, 0]) for ids in ([1, 2, 3], [4, 5, 6], [7, 8])]
    ((ids, owner),) = pack(documents, 13)
    asked = set(next_token(ids[None], owner[None]).targets.flatten().tolist())
    assert asked - {IGNORED} == set(range(9))


@pytest.mark.parametrize("sizes", [[5], [3, 9, 4, 8], [16, 16], [1, 2, 40]])
def test_padding_is_what_is_left_of_the_rows(sizes):
    window = 16
    apart = cutting.rows_one_each(sizes, window)
    assert apart == sum(-(-size // window) for size in sizes)
    share = cutting.padding(sizes, window, apart)
    assert share == pytest.approx(1 - sum(sizes) / (apart * window))
    per_cent = cutting.padding_per_cent(sizes, window)
    assert per_cent["documents cut at the edge"] <= per_cent["a row for each document"]


# ---------------------------------------------------------------- copies


def test_signatures_estimate_the_similarity():
    texts = cutting.dozen()
    signed = cutting.sign(texts, exercises.signature, 4096)
    sets = [prepare.shingles(text, 3) for text in texts]
    for n in range(12):
        exact = prepare.jaccard(sets[0], sets[n])
        assert (signed[n] == signed[0]).double().mean().item() == pytest.approx(exact, abs=0.04)


def test_signatures_agree_with_datasketch_on_what_is_alike():
    datasketch = pytest.importorskip("datasketch")
    texts = cutting.dozen()
    ours, theirs = cutting.sign(texts, exercises.signature, 2048), []
    for text in texts:
        one = datasketch.MinHash(num_perm=2048)
        one.update_batch([piece.encode() for piece in prepare.shingles(text, 3)])
        theirs.append(one)
    for n in range(12):
        estimate = (ours[n] == ours[0]).double().mean().item()
        assert estimate == pytest.approx(theirs[n].jaccard(theirs[0]), abs=0.08)


def test_a_crawl_has_the_copies_it_says_and_fresh_pages_have_none():
    pages, fresh = cutting.crawl(60)
    assert len(pages) == 100
    assert len(prepare.find_copies(pages)) == 20
    assert len(prepare.find_near_copies(pages, 0.4, 3)) >= 38
    crossing = prepare.find_near_copies(pages + fresh, 0.5, 3)
    assert sum(n >= len(pages) for n in crossing) <= 2
    assert cutting.crawl(60)[0] == pages
    assert cutting.crawl(60, seed=1)[0] != pages


def test_leaked_is_right_for_splits_whose_copies_are_known():
    pages, fresh = cutting.crawl(40, 20)
    train, held_out, new = (
        cutting.sign(part, exercises.signature, 128) for part in (pages[30:], pages[:30], fresh)
    )
    assert exercises.leaked(train, train, 0.9).all()
    assert exercises.leaked(train, held_out, 0.4).double().mean() > 0.4
    assert exercises.leaked(train, new, 0.5).double().mean() < 0.1


# ---------------------------------------------------------------- widget


def test_every_control_changes_the_picture():
    pages = {
        page_html(cutting.pieces(text, merges, learned))
        for text in (TEXT.decode(), "naïve, été")
        for merges in (0, 4, 64)
        for learned in ("this text", "Python source")
    }
    assert len(pages) == 12 - 2  # without merges it does not matter what they were learned from


@pytest.mark.parametrize("text", ["", " ", "日本語", "a" * 200, "tab\tand\nline", "e\u0301"])
def test_any_text_can_be_typed(text):
    assert digest(cutting.pieces(text, 64))


def test_the_pieces_are_named_by_their_characters():
    assert "é· | t | é·" in digest(cutting.pieces("été", 1))


def test_the_widget_draws_what_the_controls_ask_for():
    explorer = cutting.pieces.widget()
    explorer.controls["merges"].value = 3
    explorer.wait()
    assert "after 3 merges" in explorer.picture.value


def test_the_small_gpts_differ_in_their_tables_only():
    one, other = cutting.small_gpt(256), cutting.small_gpt(1024)
    assert one.but(vocab_size=1024) == other
