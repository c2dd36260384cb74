"""What a model makes of a text, in words, while it trains: for people who watch.

Special ids are spelled: a hidden id as ▁, the mark of the third span that was taken out as ⟨2⟩.
"""

from __future__ import annotations

from itertools import groupby, islice
from typing import NamedTuple

import torch

from .data import draw_windows
from .models import evaluating
from .objectives import IGNORED
from .sample import encoded, generate, greedy, reach, sampler, stream


class Reply(NamedTuple):
    """What a model was given, and what it made of it."""

    title: str
    given: str
    made: str


def reply(trainer, prompt: str, length: int, seed=0) -> Reply:
    """About `length` ids of what the model of this trainer makes of a text, by its family.

    decoder           goes on from the prompt, drawing at temperature 0.8, as far as it can count
    encoder           fills what was hidden in held-out text, always the same, with what it holds
                      likeliest
    encoder-decoder   says what was taken out of the same text

    Raises   ValueError for an empty prompt, or one that the corpus's tokenizer does not know
    """
    if trainer.spec.family == "decoder":
        return continued(trainer, prompt, length, seed)
    generator = torch.Generator().manual_seed(0)
    length = max(1, min(length // 2, trainer.window))
    rows = draw_windows(trainer.corpus.valid, 1, length, generator)
    batch = trainer.ask(rows, generator).to(trainer.device)
    with evaluating(trainer.model):
        return REPLIES[trainer.spec.family](trainer, batch)


def continued(trainer, prompt, length, seed):
    model, tokenizer = trainer.model, trainer.corpus.tokenizer
    length = reach(model, encoded(model, prompt, tokenizer), length)
    pick = sampler(temperature=0.8, seed=seed)
    made = generate(model, prompt, length, pick, tokenizer)
    return Reply("what the model writes", prompt, made.decode(errors="replace"))


def filled(trainer, batch):
    (ids,), hidden = batch.inputs, batch.targets != IGNORED
    tokenizer = trainer.corpus.tokenizer
    guesses = trainer.model(ids)[..., : tokenizer.vocab_size].argmax(dim=-1)
    rows = torch.where(hidden, tokenizer.vocab_size, ids), torch.where(hidden, guesses, ids)
    given, made = (spelled(row[0].tolist(), tokenizer) for row in rows)
    return Reply("held-out text with gaps (▁), then as the model fills it", f"{given}\n\n", made)


def answered(trainer, batch):
    (source, start), tokenizer = batch.inputs, trainer.corpus.tokenizer
    ids = stream(trainer.model, start[:, :1], greedy, trainer.model.read(source))
    made = [id.item() for id in islice(ids, start.shape[1])]
    return Reply(
        "held-out text with spans taken out (⟨0⟩), then what the model puts there",
        f"{spelled(source[0].tolist(), tokenizer)}\n\n",
        spelled(made, tokenizer),
    )


REPLIES = {"encoder": filled, "encoder-decoder": answered}


def spelled(ids, tokenizer) -> str:
    """Ids as text, those after the tokenizer's as marks."""
    size, words = tokenizer.vocab_size, []
    for ordinary, some in groupby(ids, key=lambda id: id < size):
        if ordinary:
            words.append(tokenizer.decode(list(some)).decode(errors="replace"))
        else:
            words += ["▁" if id == size else f"⟨{id - size - 1}⟩" for id in some]
    return "".join(words)
