"""What a model is trained to answer: one row per question.

A decoder predicts the next id, an encoder the masked ids, an encoder-decoder the removed spans:
these questions have the names of the families. Of a text whose lines are "source TAB target", an
encoder-decoder can write the target ("pairs"), and an encoder can tell it ("labels").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from ..checks import look_up
from ..spec import Spec
from ..text.corpora import Corpus
from ..text.objectives import (
    Batch,
    check_lines,
    labels,
    masked_token,
    next_token,
    pairs,
    span_corruption,
    span_vocabulary,
)
from ..text.tokens import Bytes, Tokenizer
from .previews import Preview, answer_lines, continue_prompt, fill_masks, restore_spans


class _Question(NamedTuple):
    """How a model is trained and shown."""

    family: str  # the models that can be asked
    label: str  # goes before "bytes" or "ids" wherever a loss is reported
    ask: Callable[..., Batch]  # (ids (B,T+1), generator, vocab_size) -> inputs and targets
    vocabulary: Callable[[int, int], int]  # (T, the tokenizer's vocab_size) -> the model's
    preview: Callable[..., Preview]  # (trainer, prompt, length, seed)


def _ask_next(ids, generator, vocab_size):
    return next_token(ids)


# The last id of a window has no successor in it, so only decoders use it, as a target.
def _ask_masked(ids, generator, vocab_size):
    return masked_token(ids[:, :-1], generator, vocab_size=vocab_size)


def _ask_spans(ids, generator, vocab_size):
    return span_corruption(ids[:, :-1], generator, vocab_size=vocab_size)


def _ask_pairs(ids, generator, vocab_size):
    return pairs(ids, vocab_size=vocab_size)


def _ask_labels(ids, generator, vocab_size):
    return labels(ids, vocab_size=vocab_size)


def _spans(T, size):
    return span_vocabulary(T, vocab_size=size)


QUESTIONS = {
    "decoder": _Question("decoder", "", _ask_next, lambda T, size: size, continue_prompt),
    "encoder": _Question("encoder", "hidden ", _ask_masked, lambda T, size: size + 1, fill_masks),
    "encoder-decoder": _Question("encoder-decoder", "lost ", _ask_spans, _spans, restore_spans),
    "pairs": _Question(
        "encoder-decoder", "target ", _ask_pairs, lambda T, size: size + 2, answer_lines
    ),
    "labels": _Question("encoder", "label ", _ask_labels, lambda T, size: size + 3, answer_lines),
}
OF_LINES = ("pairs", "labels")


def question_of(model: nn.Module, name: str = "family") -> _Question:
    """A question by its name, or that of a model's family, for a model that can be asked it.

    A module without a Spec is trained as a decoder.

    Raises   ValueError when there is no such question, or it is for another family
    """
    spec = getattr(model, "spec", None)
    family = spec.family if spec else "decoder"
    question = look_up(QUESTIONS, family if name == "family" else name, "question")
    if question.family != family:
        raise ValueError(
            f"the question {name!r} is for models of the family {question.family!r}, and this is "
            f"a {family}; leave the question out, or choose another model"
        )
    return question


def check_corpus(name: str, corpus: Corpus, window: int) -> None:
    """Check that windows of a corpus can be asked a question.

    Raises   ValueError when they must consist of lines of two fields, and do not
    """
    if name in OF_LINES:
        if not isinstance(corpus.tokenizer, Bytes):
            raise ValueError(f"the question {name!r} reads bytes; leave the tokenizer out")
        for split in (corpus.train, corpus.valid):
            check_lines(split, window)


def fit_vocabulary(spec: Spec, window: int, tokenizer: Tokenizer, question: str = "family") -> Spec:
    """The spec with a vocabulary large enough to train on windows of the tokenizer's ids."""
    _, T = spec.split_window(window)
    asked = look_up(QUESTIONS, spec.family if question == "family" else question, "question")
    needed = asked.vocabulary(T, tokenizer.vocab_size)
    return spec.but(vocab_size=max(spec.vocab_size, needed))
