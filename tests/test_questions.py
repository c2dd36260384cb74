"""What each family is trained to answer, and the vocabulary that this needs."""

import pytest
import torch
from helpers import TINY

from qllk import Recipe, Trainer, corpus
from qllk.text.objectives import masked_token, span_corruption
from qllk.text.tokens import Bytes
from qllk.training.questions import OF_LINES, QUESTIONS, fit_vocabulary, question_of


def generator():
    return torch.Generator().manual_seed(0)


def letters(rows, T, vocab_size=256):
    return torch.randint(vocab_size, (rows, T), generator=generator())


def test_each_family_is_asked_what_it_can_answer():
    ids, asked = letters(3, 41), {name: row.ask for name, row in QUESTIONS.items()}
    assert torch.equal(asked["decoder"](ids, generator(), 256).targets, ids[:, 1:])
    hidden = asked["encoder"](ids, generator(), 256)
    assert torch.equal(hidden.targets, masked_token(ids[:, :40], generator()).targets)
    spans = asked["encoder-decoder"](ids, generator(), 256)
    assert torch.equal(spans.targets, span_corruption(ids[:, :40], generator()).targets)


@pytest.mark.parametrize("family", [name for name in QUESTIONS if name not in OF_LINES])
@pytest.mark.parametrize("vocab_size", [20, 256])
def test_the_vocabulary_is_exactly_large_enough(family, vocab_size):
    row = QUESTIONS[family]
    batch = row.ask(letters(50, 41, vocab_size), generator(), vocab_size)
    largest = max(ids.max() for ids in (*batch.inputs, batch.targets))
    assert largest + 1 == row.vocabulary(40, vocab_size)


def test_a_vocabulary_is_grown_and_never_shrunk():
    assert fit_vocabulary(TINY["bert-nano"].but(vocab_size=2), 24, Bytes()).vocab_size == 257
    assert fit_vocabulary(TINY["gpt-nano"].but(vocab_size=999), 24, Bytes()).vocab_size == 999


def test_a_model_has_the_question_of_its_family_and_any_module_that_of_a_decoder():
    class Model(torch.nn.Module):
        spec = TINY["t5-nano"]

    assert question_of(Model()) is QUESTIONS["encoder-decoder"]
    assert question_of(torch.nn.Linear(1, 1)) is QUESTIONS["decoder"]


@pytest.mark.parametrize("name", OF_LINES)
def test_the_vocabulary_of_a_question_about_lines_is_exactly_large_enough(name):
    ids = torch.tensor([list(b"x\nabc\t1\nd\t2\n")])
    batch = QUESTIONS[name].ask(ids, generator(), 256)
    largest = max(ids.max() for ids in batch.inputs if ids.dtype != torch.bool)
    assert largest + 1 == QUESTIONS[name].vocabulary(len(ids[0]), 256)


def recipe(question, **changes):
    return Recipe(question=question, steps=2, batch=1, window=256, validate_bytes=3000, **changes)


@pytest.mark.parametrize(
    ("name", "question", "task"),
    [("t5-nano", "pairs", "numbers"), ("bert-nano", "labels", "moods")],
)
def test_a_model_is_trained_and_shown_on_lines(name, question, task):
    trainer = Trainer(name, corpus(f"task:{task}:20000"), recipe(question))
    assert [record.step for record in trainer] == [1, 2]
    assert 0 < trainer.validate() < 6
    lines = trainer.question.preview(trainer, "", 80, 0).made.splitlines()
    held_out = trainer.corpus.valid.tobytes().decode()
    assert len(lines) >= 3
    for line in lines:
        source, target, _ = line.split(" → ")
        assert f"{source}\t{target}\n" in held_out


def test_the_loss_of_labels_of_a_model_that_knows_nothing_is_that_of_a_coin():
    """Its logits are all equal but for the two labels, which it cannot tell apart."""
    trainer = Trainer("bert-nano", corpus("task:moods:20000"), recipe("labels"))
    with torch.no_grad():
        for weights in trainer.model.head.parameters():
            weights.zero_()
        trainer.model.head.bias[[ord("+"), ord("-")]] = 50.0
    assert trainer.validate() == pytest.approx(0.6931, abs=1e-4)


def test_a_question_for_another_family_or_an_unknown_one_is_refused():
    text = corpus("task:numbers:20000")
    with pytest.raises(ValueError, match="'pairs' is for models of the family 'encoder-decoder'"):
        Trainer("bert-nano", text, recipe("pairs"))
    with pytest.raises(ValueError, match="unknown question 'riddle'"):
        Trainer("bert-nano", text, recipe("riddle"))


def test_a_text_that_is_no_list_of_lines_is_refused_before_training():
    with pytest.raises(ValueError, match="has 0 tabs"):
        Trainer("t5-nano", corpus("task:copy:20000:1"), recipe("pairs"))
    with pytest.raises(ValueError, match="reads bytes; leave the tokenizer out"):
        Trainer("t5-nano", corpus("characters:task:numbers:20000"), recipe("pairs"))
