"""What a model makes of a text, in words, while it trains: for people who watch.

Special ids are spelled: a hidden id as ▁, the mark of the third span that was taken out as ⟨2⟩.
"""

from __future__ import annotations

from itertools import groupby, islice
from typing import NamedTuple

import torch

from ..model.families import eval_mode
from ..model.sample import encode_prompt, generate, greedy, positions_left, sampler, stream
from ..text.objectives import IGNORED
from ..text.windows import sample_windows


class Preview(NamedTuple):
    """What a model was given, and what it made of it."""

    title: str
    given: str
    made: str


def make_preview(trainer, prompt: str, length: int, seed=0) -> Preview:
    """About `length` ids of what the model of this trainer makes of a text, by its family.

    decoder           goes on from the prompt, drawing at temperature 0.8, as far as it can count
    encoder           fills what was hidden in held-out text, always the same, with what it holds
                      likeliest
    encoder-decoder   says what was taken out of the same text

    Raises   ValueError for an empty prompt, or one that the corpus's tokenizer does not know
    """
    if trainer.spec.family == "decoder":
        return _continue_prompt(trainer, prompt, length, seed)
    generator = torch.Generator().manual_seed(0)
    length = max(1, min(length // 2, trainer.window))
    rows = sample_windows(trainer.corpus.valid, 1, length, generator)
    batch = trainer.ask(rows, generator).to(trainer.device)
    with eval_mode(trainer.model):
        return _REPLIES[trainer.spec.family](trainer, batch)


def _continue_prompt(trainer, prompt, length, seed):
    model, tokenizer = trainer.model, trainer.corpus.tokenizer
    length = positions_left(model, encode_prompt(model, prompt, tokenizer), length)
    pick = sampler(temperature=0.8, seed=seed)
    made = generate(model, prompt, length, pick, tokenizer)
    return Preview("what the model writes", prompt, made.decode(errors="replace"))


def _fill_masks(trainer, batch):
    (ids,), hidden = batch.inputs, batch.targets != IGNORED
    tokenizer = trainer.corpus.tokenizer
    guesses = trainer.model(ids)[..., : tokenizer.vocab_size].argmax(dim=-1)
    rows = torch.where(hidden, tokenizer.vocab_size, ids), torch.where(hidden, guesses, ids)
    given, made = (spell(row[0].tolist(), tokenizer) for row in rows)
    return Preview("held-out text with gaps (▁), then as the model fills it", f"{given}\n\n", made)


def _restore_spans(trainer, batch):
    (source, start), tokenizer = batch.inputs, trainer.corpus.tokenizer
    ids = stream(trainer.model, start[:, :1], greedy, trainer.model.encode(source))
    made = [id.item() for id in islice(ids, start.shape[1])]
    return Preview(
        "held-out text with spans taken out (⟨0⟩), then what the model puts there",
        f"{spell(source[0].tolist(), tokenizer)}\n\n",
        spell(made, tokenizer),
    )


_REPLIES = {"encoder": _fill_masks, "encoder-decoder": _restore_spans}


def spell(ids, tokenizer) -> str:
    """Ids as text, those after the tokenizer's as marks."""
    size, words = tokenizer.vocab_size, []
    for ordinary, some in groupby(ids, key=lambda id: id < size):
        if ordinary:
            words.append(tokenizer.decode(list(some)).decode(errors="replace"))
        else:
            words += ["▁" if id == size else f"⟨{id - size - 1}⟩" for id in some]
    return "".join(words)
