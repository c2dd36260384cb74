"""What a model says of a text while it trains: each family its own, and all of it readable."""

import dataclasses

import pytest
import torch
from helpers import SPEC, TINY

from qllk.model.sample import generate, sampler
from qllk.text import corpora
from qllk.text.corpora import task
from qllk.text.objectives import IGNORED
from qllk.text.tokens import Bytes, HuggingFace
from qllk.training import previews
from qllk.training.previews import _spell
from qllk.training.recipe import Recipe
from qllk.training.trainer import Trainer

VERSES = b"so it goes, and so it went; once it comes, and once it went\n" * 40
CORPUS = task("copy", 4000)
RECIPE = Recipe(steps=2, batch=1, window=40)
ENCODER = TINY["bert-nano"].but(vocab_size=257, dropout=0.3)
SEQ2SEQ = TINY["t5-nano"].but(vocab_size=300, dropout=0.3)


def preview(run, prompt, length, seed=0):
    return run.question.preview(run, prompt, length, seed)


def trainer(spec, corpus=CORPUS):
    run = Trainer(spec, corpus, RECIPE)
    next(run)
    return run


def test_a_decoder_goes_on_from_the_prompt():
    run = trainer(SPEC)
    expected = generate(run.model, "ab", 20, sampler(0.8, seed=7))
    assert preview(run, "ab", 20, seed=7)[1:] == ("ab", expected.decode(errors="replace"))


def test_a_decoder_writes_no_further_than_it_can_count():
    run = trainer(TINY["gpt2-nano"].but(context=16))
    run.model.head.weight.data.fill_(0.0)
    assert 0 < len(preview(run, "ab", 200).made.encode(errors="replace")) < 16 * 3


def words_tokenizer():
    """A tokenizer of Hugging Face whose tokens are words: spaces come from what stands between."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: id for id, word in enumerate(["the", "cat", "sat", "on", "mat"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="the"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return HuggingFace.of(made)


def test_what_follows_the_prompt_is_decoded_with_it(monkeypatch):
    words = words_tokenizer()
    text = dataclasses.replace(
        CORPUS, tokenizer=words, train=CORPUS.train % 5, valid=CORPUS.valid % 5
    )
    run = trainer(SPEC, text)
    said = iter([2, 3, 0, 4])
    monkeypatch.setattr(previews, "sampler", lambda **_: lambda logits: torch.tensor([next(said)]))
    given, made = preview(run, "the cat", 4)[1:]
    assert given + made == "the cat sat on the mat"


def test_words_between_marks_keep_their_spaces():
    assert _spell([0, 1, 5, 3, 6, 7, 4], words_tokenizer()) == "the cat▁ on⟨0⟩⟨1⟩ mat"


@pytest.fixture
def asked(monkeypatch):
    """Every batch that a trainer asks for."""
    batches, ask = [], Trainer.ask
    monkeypatch.setattr(Trainer, "ask", lambda *what: batches.append(ask(*what)) or batches[-1])
    return batches


def test_an_encoder_fills_what_was_hidden_with_its_likeliest_guesses(asked):
    run = trainer(ENCODER)
    likes = torch.zeros(257)
    likes[[ord("Z"), 256]] = torch.tensor([1.0, 2.0])  # the mark itself is no guess
    run.model.forward = lambda ids: likes.expand(*ids.shape, 257)
    _, given, made = preview(run, "", 80)
    hidden = (asked[-1].targets[0] != IGNORED).tolist()
    text = zip(hidden, asked[-1].inputs[0][0].tolist(), strict=True)
    assert made == "".join("Z" if gone else chr(byte) for gone, byte in text)
    assert given == f"{made.replace('Z', '▁')}\n\n"
    assert made.count("Z") == sum(hidden) > 0


def test_an_encoder_decoder_says_what_was_taken_out(asked, monkeypatch):
    run = trainer(SEQ2SEQ)
    said = iter([257, *b"ab", 258, *b"cd", 259, *b"ef"])
    monkeypatch.setattr(previews, "greedy", lambda logits: torch.tensor([next(said)]))
    _, given, made = preview(run, "", 80)
    assert made == "⟨0⟩ab⟨1⟩cd⟨2⟩ef"[: len(made)]
    assert len(made.replace("⟨", "").replace("⟩", "")) == asked[-1].targets.shape[1] == 9
    assert given == f"{_spell(asked[-1].inputs[0][0].tolist(), Bytes())}\n\n"
    assert given.count("⟨") == 2


@pytest.mark.parametrize("spec", [ENCODER, SEQ2SEQ], ids=["encoder", "encoder-decoder"])
def test_a_reply_is_about_the_same_text_each_time_and_disturbs_nothing(spec):
    run = trainer(spec)
    first = preview(run, "", 80)
    assert preview(run, "", 80, seed=5) == first
    assert run.model.training
    twin = trainer(spec)
    assert next(run).nats == next(twin).nats


def test_special_ids_are_spelled():
    assert _spell([72, 105, 256, 33, 257, 260], Bytes()) == "Hi▁!⟨0⟩⟨3⟩"
    assert _spell([], Bytes()) == ""


def test_other_ids_are_spelled_by_their_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_bytes(VERSES)
    corpus = corpora.corpus(f"bpe-270:{tmp_path / 'text.txt'}")
    run = trainer(ENCODER.but(vocab_size=271), corpus)
    _, given, _ = preview(run, "", 20)
    shown = given.removesuffix("\n\n").split("▁")
    assert all(piece in bytes(corpus.text.valid).decode() for piece in shown)
    run = trainer(SPEC.but(vocab_size=270), corpus)
    assert preview(run, "so", 5).given == "so"
