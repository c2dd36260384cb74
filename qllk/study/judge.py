"""A model on all of its held-out text: in windows, as a stream, and by what it writes."""

from __future__ import annotations

import math
from itertools import islice

import torch

from ..model.families import eval_mode
from ..model.sample import positions_left, restrict_vocabulary, sampler, stream
from ..probes.evaluate import LN2, iterate_batches, iterate_stream
from ..probes.scores import Scores, distinct, score
from ..training.trainer import Trainer
from .race import WINDOWS, longest_stream

_SAMPLE = 4096  # ids that are written, fewer if the model's context ends
_PROMPT = 64  # ids of the held-out text that come before them
_NGRAMS = (1, 2, 3, 4)


def judge(trainer: Trainer, *, seed: int = 0) -> dict:
    """The scores of a run's model on its whole held-out split, as plain data.

    windows    scores without a carried state, by the ids per window: of a decoder 1,024 and 4,096,
               or its context; of an encoder those of masked ids, and of an encoder-decoder those of
               the ids of removed spans, in windows as in training
    stream     scores of a decoder with the state carried, else None
    longest    ids in a stream, if the state grows, else None
    distinct   of a decoder, by n, the share of different n-grams in what it writes, and in as much
               of the held-out text
    """
    kind = "bytes" if trainer.corpus.bytes_per_id == 1 else "ids"
    windows = {str(n): _facts(trainer, _in_windows(trainer, n)) for n in _windows(trainer)}
    found = {
        "model": trainer.name,
        "corpus": trainer.corpus.name,
        "unit": f"{trainer.question.label}{kind}",
        "windows": windows,
        **dict.fromkeys(("stream", "longest", "distinct")),
    }
    if trainer.question.label:
        return found
    if hasattr(trainer.model, "run"):
        found["longest"] = longest_stream(trainer.model)
        read = iterate_stream(trainer.model, trainer.corpus.valid, longest=found["longest"])
        with trainer.place.autocast():
            found["stream"] = _facts(trainer, score(read))
    written = _write(trainer, seed)
    texts = {"written": written, "held out": trainer.corpus.valid[: len(written)].tolist()}
    grams = [n for n in _NGRAMS if n <= len(written)]
    found["distinct"] = {
        name: {str(n): distinct(ids, n) for n in grams} for name, ids in texts.items()
    }
    return found


def _windows(trainer) -> list[int]:
    if trainer.question.label or trainer.spec is None:
        return [trainer.window]
    return sorted({trainer.spec.split_window(window)[1] for window in WINDOWS})


def _in_windows(trainer, window) -> Scores:
    text, ask = trainer.corpus.valid, trainer.evaluation()
    with trainer.place.autocast():
        return score(iterate_batches(trainer.model, text, window, ask=ask))


def _facts(trainer, scores: Scores) -> dict:
    nats = scores.nats / trainer.corpus.bytes_per_id
    return {
        "targets": scores.targets,
        "nats_per_byte": nats,
        "bits_per_byte": nats / LN2,
        "perplexity": scores.perplexity if math.isfinite(scores.perplexity) else None,
        "accuracy": {str(k): share for k, share in scores.accuracy.items()},
    }


def _write(trainer, seed) -> list[int]:
    """Ids that the model samples after the start of the held-out text."""
    model, device = trainer.model, trainer.place.device
    prompt = torch.from_numpy(trainer.corpus.valid[None, :_PROMPT].astype("int64")).to(device)
    length = positions_left(model, prompt, _SAMPLE)
    pick = restrict_vocabulary(sampler(1.0, seed=seed), trainer.corpus.tokenizer.vocab_size)
    with eval_mode(model):
        return [int(id) for id in islice(stream(model, prompt, pick), length)]


def format_judgement(found: dict) -> str:
    """What `judge` has found, as a table and a sentence."""
    lines = [
        f"{found['model']} on {found['corpus']}, all held-out {found['unit']}:",
        "| judged | targets | bits per byte | perplexity per id | top 1 | top 5 |",
        "| --- | " + "---: | " * 5,
    ]
    rows = {f"in windows of {int(n):,}": facts for n, facts in found["windows"].items()}
    if found["stream"]:
        cut = f", cut every {found['longest']:,} ids" if found["longest"] else ""
        rows[f"as a stream{cut}"] = found["stream"]
    for name, facts in rows.items():
        perplexity = facts["perplexity"]
        cells = (
            *(name, f"{facts['targets']:,}", f"{facts['bits_per_byte']:.4f}"),
            "above 1e304" if perplexity is None else f"{perplexity:,.2f}",
            *(f"{share:.4f}" for share in facts["accuracy"].values()),
        )
        lines.append(f"| {' | '.join(cells)} |")
    for name, shares in (found["distinct"] or {}).items():
        grams = ", ".join(f"{share:.3f} of {n}-grams" for n, share in shares.items())
        lines.append(f"different n-grams in what is {name}: {grams}")
    return "\n".join(lines)
