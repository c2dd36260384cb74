"""Previews shown during training: a continued prompt, filled masks, restored spans, or answers.

Each takes a Trainer and reads its model and corpus; only `continue_prompt` uses the prompt and the
seed. Special ids are spelled out: a mask as ▁, the
sentinel of the third span as ⟨2⟩.
"""

from __future__ import annotations

from itertools import groupby, islice
from typing import NamedTuple

import torch

from ..model.families import eval_mode
from ..model.sample import (
    decode_after,
    encode_prompt,
    generate,
    greedy,
    positions_left,
    sampler,
    stream,
)
from ..text.objectives import IGNORED, Batch
from ..text.tokens import Tokenizer
from ..text.windows import sample_windows


class Preview(NamedTuple):
    """What the model was given, and what it made of it."""

    title: str
    given: str
    made: str


def continue_prompt(trainer, prompt: str, length: int, seed: int) -> Preview:
    """Sample `length` ids after the prompt at temperature 0.8, fewer if the context ends earlier.

    Raises   ValueError when the prompt is empty or the tokenizer cannot encode it
    """
    model, tokenizer = trainer.model, trainer.corpus.tokenizer
    length = positions_left(model, encode_prompt(model, prompt, tokenizer), length)
    made = generate(model, prompt, length, sampler(temperature=0.8, seed=seed), tokenizer)
    return Preview("what the model writes", prompt, made.decode(errors="replace"))


def fill_masks(trainer, prompt: str, length: int, seed: int) -> Preview:
    """Fill the masks of a held-out window, always the same one, with the likeliest ids."""
    batch, tokenizer = _held_out_batch(trainer, length), trainer.corpus.tokenizer
    (ids,), hidden = batch.inputs, batch.targets != IGNORED
    with eval_mode(trainer.model):
        guesses = trainer.model(ids)[..., : tokenizer.vocab_size].argmax(dim=-1)
    rows = torch.where(hidden, tokenizer.vocab_size, ids), torch.where(hidden, guesses, ids)
    given, made = (_spell(row[0].tolist(), tokenizer) for row in rows)
    return Preview("held-out text with gaps (▁), then as the model fills it", f"{given}\n\n", made)


def restore_spans(trainer, prompt: str, length: int, seed: int) -> Preview:
    """Restore the spans removed from a held-out window, always the same one, greedily."""
    batch, tokenizer = _held_out_batch(trainer, length), trainer.corpus.tokenizer
    source, start = batch.inputs
    with eval_mode(trainer.model):
        ids = stream(trainer.model, start[:, :1], greedy, trainer.model.encode(source))
        made = [id.item() for id in islice(ids, start.shape[1])]
    return Preview(
        "held-out text with spans taken out (⟨0⟩), then what the model puts there",
        f"{_spell(source[0].tolist(), tokenizer)}\n\n",
        _spell(made, tokenizer),
    )


def answer_lines(trainer, prompt: str, length: int, seed: int) -> Preview:
    """Answer the first held-out lines, greedily: each with its answer, then the model's."""
    model, window = trainer.model, trainer.corpus.valid[None, : trainer.window + 1]
    batch = trainer.evaluation()(torch.from_numpy(window.copy())).to(trainer.place.device)
    read, *_ = inputs = [rows[:_LINES] for rows in batch.inputs]
    with eval_mode(model):
        if trainer.spec.family == "encoder":
            made = model(*inputs)[:, :1].argmax(dim=-1)
        else:
            source, start, text = inputs
            answers = stream(model, start[:, :1], greedy, model.encode(source, text))
            made = torch.stack(list(islice(answers, start.shape[1])), dim=1)
    rows = zip(read, batch.targets, made, strict=False)
    lines = [" → ".join(map(_first_line, row)) for row in rows]
    return Preview("held-out lines with their answers, then the model's", "", "\n".join(lines))


_LINES = 6  # that are shown


def _first_line(ids) -> str:
    """The bytes among ids, up to a newline."""
    found = bytes(id for id in ids.tolist() if 0 <= id < 256)
    return found.partition(b"\n")[0].decode(errors="replace")


def _held_out_batch(trainer, length: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    length = max(1, min(length // 2, trainer.window))
    ids = sample_windows(trainer.corpus.valid, 1, length, generator)
    return trainer.ask(ids, generator).to(trainer.place.device)


def _spell(ids: list[int], tokenizer: Tokenizer) -> str:
    """Decode ids to text; masks and sentinels, which the tokenizer lacks, become marks."""
    size, words, before = tokenizer.vocab_size, [], []
    for ordinary, some in groupby(ids, key=lambda id: id < size):
        if ordinary:
            some = list(some)
            words.append(decode_after(tokenizer, before, some).decode(errors="replace"))
            before += some
        else:
            words += ["▁" if id == size else f"⟨{id - size - 1}⟩" for id in some]
    return "".join(words)
