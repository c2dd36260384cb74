"""What each family is trained to answer, and the vocabulary that this needs."""

import pytest
import torch
from helpers import TINY

from qllk.text.objectives import masked_token, span_corruption
from qllk.text.tokens import Bytes
from qllk.training.questions import QUESTIONS, fit_vocabulary, question_of


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


@pytest.mark.parametrize("family", QUESTIONS)
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
