"""What each family of models is trained to answer: one row per family.

A decoder predicts the next id, an encoder the masked ids, an encoder-decoder the removed spans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from ..checks import look_up
from ..spec import Spec
from ..text.objectives import Batch, masked_token, next_token, span_corruption, span_vocabulary
from ..text.tokens import Tokenizer
from .previews import Preview, continue_prompt, fill_masks, restore_spans


class _Question(NamedTuple):
    """How a family of models is trained and shown."""

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


QUESTIONS = {
    "decoder": _Question("", _ask_next, lambda T, size: size, continue_prompt),
    "encoder": _Question("hidden ", _ask_masked, lambda T, size: size + 1, fill_masks),
    "encoder-decoder": _Question(
        "lost ", _ask_spans, lambda T, size: span_vocabulary(T, vocab_size=size), restore_spans
    ),
}


def question_of(model: nn.Module) -> _Question:
    """The question of a model's family. A module without a Spec is trained as a decoder."""
    spec = getattr(model, "spec", None)
    return look_up(QUESTIONS, spec.family if spec else "decoder", "family")


def fit_vocabulary(spec: Spec, window: int, tokenizer: Tokenizer) -> Spec:
    """The spec with a vocabulary large enough to train on windows of the tokenizer's ids."""
    _, T = spec.split_window(window)
    needed = QUESTIONS[spec.family].vocabulary(T, tokenizer.vocab_size)
    return spec.but(vocab_size=max(spec.vocab_size, needed))
