"""Lesson 16, Give one block three shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from ...model.blocks import Block
from ...model.families import build, count_parameters, sketch
from ...presets import PRESETS
from ...probes.evaluate import iterate_batches
from ...spec import Spec
from ...study.figures import Heat, Note
from ...text.corpora import Corpus
from ...text.objectives import IGNORED, Batch, masked_token, span_corruption
from ...training.trainer import Trainer
from ..explore import choice, explorer, slider
from ..ledger import DOES_NOT, IN_PART, UNTESTED, Claim, holds_if
from ..show import TEXT, letters_of

GPT, BERT, T5 = "GPT", "BERT", "T5"
_FAMILIES = {GPT: "decoder", BERT: "encoder", T5: "encoder-decoder"}
_ATTENTION = ("softmax", {"heads": 4})
_IDS = 256 + 101  # bytes, and the special ids of all questions


def spec_of(shape: str, d_model: int = 64, layers: int = 2, **changes) -> Spec:
    """One block in the shape of a GPT, a BERT or a T5: the same parts, however it is asked."""
    return Spec(
        d_model=d_model,
        layers=layers,
        mixers=(_ATTENTION,),
        mlp=("relu2", {"ratio": 2}),
        positions="rotary",
        vocab_size=_IDS,
        family=_FAMILIES[shape],
        cross=_ATTENTION if shape == T5 else None,
    ).but(**changes)


# ---------------------------------------------------------------- texts with a known answer


def twins(letters: int = 4, size: int = 1 << 18) -> Corpus:
    """A text of random letters, each written twice: "aa dd bb ". Its first letters come from
    nowhere, and its second ones from the first.
    """
    drawn = np.random.default_rng(0).integers(ord("a"), ord("a") + letters, size // 3)
    text = np.stack((drawn, drawn, np.full_like(drawn, ord(" "))), axis=1).astype(np.uint8)
    held_out = len(text) // 10
    return Corpus("twins", text[:-held_out].ravel(), text[-held_out:].ravel())


def nats_by_place(trainer: Trainer) -> dict[str, float]:
    """The loss on the first and on the second letter of each pair of a held-out text of twins."""
    nats, count = trainer.loss_by_position(len(trainer.corpus.valid))
    ahead = 1 if trainer.spec.family == "decoder" else 0  # a decoder is asked for the next id
    place = (torch.arange(len(nats)) + ahead) % 3
    found = {}
    for number, name in enumerate(("first", "second")):
        here = (place == number) & (count > 0)
        found[name] = ((nats * count)[here].sum() / count[here].sum()).item()
    return found


_DICTIONARY = (
    {"red": "rojo", "old": "vie", "big": "gra", "new": "neu", "sad": "tri", "hot": "cal"},
    {"cat": "gat", "dog": "per", "cow": "vac", "hen": "gal", "pig": "cer", "fox": "zor"},
    {"ran": "cor", "sat": "sen", "ate": "com", "hid": "esc", "fed": "dio", "lay": "yac"},
)


def toy_language(lines: int = 4000) -> Corpus:
    """A language to translate: "red cat ran" is "gat rojo cor". A fifth of the sentences stand in
    the held-out text alone.
    """
    rng = np.random.default_rng(0)
    adjectives, nouns, verbs = _DICTIONARY
    sentences = [(a, n, v) for a in adjectives for n in nouns for v in verbs]
    rng.shuffle(sentences)
    written = [f"{a} {n} {v}\t{nouns[n]} {adjectives[a]} {verbs[v]}\n" for a, n, v in sentences]
    known = len(written) * 4 // 5
    drawn = [written[i] for i in rng.integers(known, size=lines)]
    texts = ("".join(drawn), "\n" + "".join(written[known:]))
    return Corpus("toy language", *(np.frombuffer(text.encode(), np.uint8) for text in texts))


def answered(trainer: Trainer) -> float:
    """The share of held-out lines whose answer is right from its first id to its last.

    A greedy decoder writes the answer exactly if each id is the likeliest after the right ones.
    """
    right = []
    text, ask = trainer.corpus.valid, trainer.evaluation()
    for logits, targets in iterate_batches(trainer.model, text, trainer.window, ask=ask):
        hits = (logits.argmax(dim=-1) == targets) | (targets == IGNORED)
        right += hits.all(dim=1)[(targets != IGNORED).any(dim=1)].tolist()
    return sum(right) / len(right)


def answers(trainer: Trainer) -> str:
    """The first held-out lines: the source, the right answer, and the model's."""
    return trainer.question.preview(trainer, "", 0, 0).made


def spell(ids: Tensor) -> str:
    """A row of ids as text: "▁" for id 256, "<0>" for the first sentinel, "·" for no target."""

    def mark(id):
        if id < 256:
            return chr(id) if id >= 0 else "·"
        return "▁" if id == 256 else f"<{id - 257}>"

    return "".join(map(mark, ids[0].tolist()))


# ---------------------------------------------------------------- as published


class Deaf(nn.Module):
    """An encoder-decoder as one of the originals has it: its decoder never asks its encoder."""

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec
        self.decoder = build(spec.but(family="decoder", cross=None), seed=0)

    def forward(self, source: Tensor, ids: Tensor, text: Tensor | None = None) -> Tensor:
        return self.decoder(ids)


class Hollow(nn.Module):
    """An encoder as one of the originals has it: embeddings, a head, and no layer between them."""

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab_size, spec.d_model)
        self.positions = nn.Embedding(spec.context or 512, spec.d_model)
        self.head = nn.Linear(spec.d_model, spec.vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids) + self.positions(torch.arange(ids.shape[1])))


def capped_share(size: int, rate: float = 0.15, span: int = 3, most: int = 10) -> float:
    """The share of ids that the original removes: never more than ten spans."""
    return span * min(most, int(size * rate / span) + 1) / size


def _share_lost(size: int) -> float:
    """The share that `span_corruption` removes from a row."""
    ids = torch.zeros(1, size, dtype=torch.long)
    (source, _), _ = span_corruption(ids, torch.Generator().manual_seed(0))
    return 1 - (source < 256).sum().item() / size


# ---------------------------------------------------------------- claims


def _hollow(preset: str) -> nn.Module:
    return Hollow(PRESETS[preset])


@dataclass(frozen=True)
class Evidence:
    """What the tests look at: by default, what was published, rebuilt.

    make       the model of a preset's name
    hide       ids (B,T) and a generator -> what an encoder reads and is asked
    share      the share of a row of so many ids that span corruption removes
    """

    make: Callable[[str], nn.Module] = _hollow
    hide: Callable[[Tensor, torch.Generator], Batch] = masked_token
    share: Callable[[int], float] = capped_share


OURS = Evidence(make=lambda preset: sketch(PRESETS[preset]), share=_share_lost)


def _sizes(seen):
    wanted, said, right = {"bert-base": 12, "t5-base": 24}, [], []
    for preset, layers in wanted.items():
        with torch.device("meta"):
            model = seen.make(preset)
        there = sum(isinstance(module, Block) for module in model.modules())
        said.append(f"{preset}: {there} layers, {count_parameters(model) / 1e6:.1f}M")
        right.append(there == layers)
    return holds_if(all(right)), "; ".join(said)


def _shares(seen):
    ids = torch.randint(256, (64, 512), generator=torch.Generator().manual_seed(0))
    (read,), targets = seen.hide(ids, torch.Generator().manual_seed(1))
    asked = targets != IGNORED
    kinds = Counter(
        "mask" if new == 256 else "kept" if new == old else "other"
        for new, old in zip(read[asked].tolist(), ids[asked].tolist(), strict=True)
    )
    share = asked.float().mean().item()
    of = {kind: kinds[kind] / int(asked.sum()) for kind in ("mask", "other", "kept")}
    near = (
        abs(share - 0.15) < 0.01 and abs(of["mask"] - 0.8) < 0.02 and abs(of["kept"] - 0.1) < 0.02
    )
    said = ", ".join(f"{kind} {part:.0%}" for kind, part in of.items())
    return holds_if(near), f"{share:.1%} of the ids; of these {said}"


def _removed(seen):
    found = {size: seen.share(size) for size in (20, 100, 512)}
    right = [abs(share - 0.15) < 0.02 for share in found.values()]
    said = ", ".join(f"{share:.1%} of {size}" for size, share in found.items())
    return holds_if(all(right), IN_PART if any(right) else DOES_NOT), said


def _crossing(seen):
    return UNTESTED, "takes a GPU: the same step on both, at several sizes"


CLAIMS = (
    Claim("L48", "BERT-Base and T5-Base, 12 and 12 + 12", _sizes),
    Claim("L49", "15 % masked, as 80 / 10 / 10", _shares),
    Claim("L50", "spans of three, 15 % of the text", _removed),
    Claim("L52", "a CPU does below 100M parameters", _crossing),
)


# ---------------------------------------------------------------- widget


def _influence(call, ids) -> Tensor:
    """Which logits change with which id.  Shapes   ids (1,N) -> (T,N) bool"""
    changed = ids.repeat(ids.shape[1] + 1, 1)  # one place in each row, and none in the last
    changed[range(ids.shape[1]), range(ids.shape[1])] += 1
    with torch.no_grad():
        logits = call(changed)
    return ((logits[:-1] - logits[-1:]).abs().amax(dim=-1) > 1e-9).T


@lru_cache
def seen_by(shape: str, padding: int) -> dict[str, Tensor]:
    """Who sees whom in a small model of a shape, by the text that is seen.

    Shapes   -> (16,16) bool, a row for each position that is answered and a column for each id
    """
    model = build(spec_of(shape, d_model=16, layers=1), seed=0).double()
    ids = torch.tensor([list(TEXT)])
    text = torch.arange(len(TEXT))[None] < len(TEXT) - padding
    if shape != T5:
        documents = (~text).long()
        return {"its own text": _influence(lambda x: model(x, documents.expand_as(x)), ids)}

    def both(source, own):
        rows = max(len(source), len(own))
        return model(source.expand(rows, -1), own.expand(rows, -1), text.expand(rows, -1))

    return {
        "the source": _influence(lambda x: both(x, ids), ids),
        "what it has written": _influence(lambda x: both(ids, x), ids),
    }


@explorer(
    "Which shape may look to the right, and what does padding take away?",
    shape=choice("shape", list(_FAMILIES)),
    padding=slider("padding", [0, 3, 6]),
)
def look(shape: str = GPT, padding: int = 0):
    """Who sees whom, for a shape and a number of padded ids at the end."""
    letters, sights, words = letters_of(TEXT), [], []
    rows = [f"answer {t}" for t in range(len(TEXT))]
    for name, seen in seen_by(shape, padding).items():
        ahead = int(seen.triu(1).sum())
        said = f"{shape}, {name}: {int(seen.sum())} of {seen.numel()} pairs, {ahead} to the right"
        words.append(f"{said}.")
        colours = seen.double() - 1.6 * seen.triu(1).double()
        sights.append(
            Heat(f"{shape} sees {name}", colours.tolist(), rows, letters, most=1.0, said=said)
        )
    return [tuple(sights), Note("Blue: up to its own place. Orange: to the right of it", words)]
