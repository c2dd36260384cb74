"""Whole models, assembled from a Spec. The contract of a mixer, on ids instead of vectors:

    logits, state = model.run(ids, state)        logits = model(ids)

ids are (B,T) bytes of any integer type, logits (B,T,vocab_size). Training uses the second,
streaming the first. An encoder sees both ways and has the second alone. An encoder-decoder is
called `model(source, ids)`, and its `run` starts from the state `model.read(source)`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from ..checks import build_part, check_ids, check_same_shape, look_up
from ..presets import PRESETS
from ..spec import Spec
from .blocks import BidirectionalStack, Block, CrossStack, Stack, cycle, norm_of
from .kernels import document_mask
from .layers import HEADS
from .mixers import MASKED
from .patching import PatchPath
from .positions import BIDIRECTIONAL_POSITIONS, POSITIONS, Learned


class ModelState(NamedTuple):
    """What a model carries: how many bytes it read, and what each of its parts remembers."""

    t: int
    parts: tuple


class LanguageModel(nn.Module):
    """Predict the next byte from all before it: embed, stack, norm, head.

    Where rows are packed from several texts, `documents` keeps each inside its own, as if it were
    alone: exactly so where positions count distances, while learned and sinusoidal ones go on
    counting from the start of the row.

    Shapes   ids (B,T), documents (B,T) as `data.pack` yields them, none means one per row
             ->  logits (B,T,vocab_size)
    State    ModelState(bytes read, the layers' states)
    Raises   ValueError when ids are not (B,T), are empty, or lie outside the vocabulary; when
             documents do not fit them, or a mixer would carry one document into the next
    """

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec
        self._assemble(spec)
        initialise(self)

    def _assemble(self, spec):
        """All parts; their weights are drawn afterwards, once."""
        self.embed = nn.Embedding(spec.vocab_size, spec.d_model)
        self.positions = build_part(
            POSITIONS, spec.positions, "positions", spec.d_model, spec.context
        )
        self.norm_in = norm_of(spec.norm_in)(spec.d_model)
        self.body = self._body(cycle(spec.mixers, spec.layers))
        self.norm = norm_of(spec.norm_out or spec.norm)(spec.d_model)
        self.head = build_part(HEADS, spec.head, "head", spec.d_model, spec.vocab_size)

    def _body(self, parts) -> nn.Module:
        return Stack(self.spec, self.spec.d_model, parts, self.positions)

    def run(self, ids, state=None, *keep):
        ids = check_ids(ids, self.spec.vocab_size)
        t, parts = state or (0, None)
        x = self.norm_in(self.positions.add(self.embed(ids), t))
        x, parts = self.body(x, parts, *keep)
        return self.head(self.norm(x)), ModelState(t + ids.shape[1], parts)

    def forward(self, ids, documents=None):
        if documents is None:
            return self.run(ids)[0]
        _check_documents_stay_apart(self.spec)
        return self.run(ids, None, document_mask(check_same_shape("documents", documents, ids)))[0]


def _check_documents_stay_apart(spec):
    """Refuse to pack for a model whose layers would carry one document into the next."""
    leaks = [name for name, _ in spec.mixers if name not in MASKED] + ["patches"] * bool(spec.patch)
    if leaks:
        raise ValueError(
            f"{', '.join(dict.fromkeys(leaks))} would carry one document of a row into the next; "
            f"give each a row of its own, or mix by {' and '.join(sorted(MASKED))} alone"
        )


class PatchedLanguageModel(LanguageModel):
    """A language model with two clocks: byte layers, and a trunk that runs once every R bytes.

        x = before(embed(bytes))        x = after(x + path(x))        logits = head(norm(x))

    `path` is a `PatchPath` around a `Stack` of its own width. Take it away (`spec.but(patch=None)`)
    and the byte layers alone remain: the control of every claim about the trunk.
    """

    def _body(self, parts):
        return PatchedStack(self.spec, parts, self.positions)


class PatchedStack(nn.Module):
    """Byte layers, the patch path beside them, and byte layers where the two have joined."""

    def __init__(self, spec, parts, positions):
        super().__init__()
        patch, join = spec.patch, len(parts) - spec.patch.after
        self.before = Stack(spec, spec.d_model, parts[:join], positions)
        slow = cycle(patch.mixers, patch.layers)
        trunk = Stack(spec, patch.d_model, slow, positions)  # adding was done to the bytes
        self.norm = norm_of(spec.norm)(spec.d_model)
        self.path = PatchPath(spec.d_model, patch.size, trunk, patch.d_model)
        self.after = Stack(spec, spec.d_model, parts[join:], positions)

    def forward(self, x, states=None):
        before, path, after = states or (None, None, None)
        x, before = self.before(x, before)
        hints, path = self.path(self.norm(x), path)
        x, after = self.after(x + hints, after)
        return x, (before, path, after)


class Encoder(nn.Module):
    """Read a text whole, each position from both sides: positions, norm, layers, norm.

    Shapes   x (B,T,D), keep (B,1,T or 1,T), none means see all  ->  (B,T,D)
    """

    def __init__(self, spec):
        super().__init__()
        self.positions = build_part(
            BIDIRECTIONAL_POSITIONS, spec.positions, "positions", spec.d_model, spec.context
        )
        self.norm_in = norm_of(spec.norm_in)(spec.d_model)
        parts = cycle(spec.mixers, spec.layers)
        self.body = BidirectionalStack(spec, spec.d_model, parts, self.positions)
        self.norm = norm_of(spec.norm_out or spec.norm)(spec.d_model)

    def forward(self, x, keep=None):
        x = self.norm_in(self.positions.add(x, 0))
        return self.norm(self.body(x, None, keep)[0])


class MaskedLanguageModel(nn.Module):
    """Guess bytes that were hidden from those on both sides.  BERT, Devlin 2018, 1810.04805.

    Shapes   ids (B,T), and of the same shape
             segments, none means that all are of the first kind
             documents: places see those alone that have the same number as they. So to hide
             padding give true for text and false for padding; none means that all is one text
             ->  logits (B,T,vocab_size)
    Raises   ValueError when any of them is not (B,T), is empty, or lies outside its range
    """

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab_size, spec.d_model)
        self.segments = nn.Embedding(spec.segments, spec.d_model) if spec.segments else None
        self.encoder = Encoder(spec)
        self.head = build_part(HEADS, spec.head, "head", spec.d_model, spec.vocab_size)
        initialise(self)

    def forward(self, ids, segments=None, documents=None):
        ids = check_ids(ids, self.spec.vocab_size)
        x = self.embed(ids)
        if self.segments:
            kinds = torch.zeros_like(ids) if segments is None else segments
            x = x + self.segments(check_ids(kinds, self.spec.segments))
        elif segments is not None:
            raise ValueError("segments were given to a model that has none; set Spec.segments")
        keep = (
            None
            if documents is None
            else document_mask(check_same_shape("documents", documents, ids))
        )
        return self.head(self.encoder(x, keep))

    def run(self, ids, state=None):
        raise ValueError(
            "an encoder sees both ways, so it cannot read on from a state or write a text: call "
            "model(ids), or build a model of the family 'decoder'"
        )


class Seq2Seq(LanguageModel):
    """Write one text while looking at another: an encoder reads it, each layer looks at it.

        state = model.read(source)        logits, state = model.run(ids, state)

    Both texts share one embedding. Where the source is padded, `text` says which of its places are
    not, and the state remembers it.

    Shapes   source (B,N), ids (B,T), text (B,N) bool, none means all  ->  logits (B,T,vocab_size)
    State    ModelState(bytes written, a pair per layer: its mixer's state and a Source)
    Paper    T5, Raffel 2019, 1910.10683
    Raises   ValueError when ids do not fit the vocabulary, text does not fit the source, or `run`
             is not told the source
    """

    def _assemble(self, spec):
        super()._assemble(spec)
        self.encoder = Encoder(spec)

    def _body(self, parts):
        return CrossStack(self.spec, self.spec.d_model, parts, self.positions)

    def read(self, source, text=None) -> ModelState:
        source = check_ids(source, self.spec.vocab_size)
        keep = None if text is None else _check_text(text, source)[:, None, None]  # (B,1,1,N)
        memory = self.encoder(self.embed(source), keep)
        sources = (block.cross.read(memory, keep) for block in self.body.blocks)
        return ModelState(0, tuple((None, source) for source in sources))

    def run(self, ids, state=None):
        if state is None:
            raise ValueError("an encoder-decoder starts from model.read(source), got no state")
        return super().run(ids, state)

    def forward(self, source, ids, text=None):
        return self.run(ids, self.read(source, text))[0]


def _check_text(text, source):
    """Which places of the source are text.

    Raises   ValueError when it is not bool, or of another shape
    """
    if text.dtype != torch.bool:
        raise ValueError(
            f"text must be bool, true where the source is no padding; got {text.dtype}. Numbers of "
            "documents become that by documents >= 0"
        )
    return check_same_shape("text", text, source)


def initialise(model):
    """Normal weights scaled to their input, smaller where they add to the skip or make logits.

    So activations start at a steady size at any width and depth, and the first loss is near that
    of a uniform guess.  GPT-2, Radford 2019, 2.3, for the layers' share of the skip; its code for
    learned positions, of half the size of what they are added to. A tied embedding is the head's,
    of a size between those of the two: were it as small as other heads, steps of training would
    throw it about.
    """
    layers = sum(isinstance(module, Block) for module in model.modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            share = (2 * layers) ** -0.5 if name.endswith((".out", ".unfold")) else 1.0
            share = 0.2 if name == "head" else share
            nn.init.normal_(module.weight, std=share * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
    size = model.spec.d_model**-0.5
    if model.spec.tied:
        size *= 0.4
        model.embed.weight = model.head.weight
        nn.init.normal_(model.embed.weight, std=size)
    for module in model.modules():
        if isinstance(module, Learned):
            nn.init.normal_(module.table.weight, std=0.5 * size)


# Patches make of a decoder a PatchedLanguageModel.
FAMILIES = {
    "decoder": LanguageModel,
    "encoder": MaskedLanguageModel,
    "encoder-decoder": Seq2Seq,
}


def build(what: str | Spec, *, seed: int | None = None) -> nn.Module:
    """The model of a preset's name or of a Spec. A seed makes its weights reproducible.

    Raises   ValueError when there is no such preset or part; it lists those that there are
    """
    spec = what if isinstance(what, Spec) else look_up(PRESETS, what, "preset")
    family = PatchedLanguageModel if spec.patch else look_up(FAMILIES, spec.family, "family")
    if seed is None:
        return family(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family(spec)


@contextmanager
def eval_mode(model):
    """Inside, the model drops nothing out and records no gradients; afterwards it is as before."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def count_parameters(model) -> int:
    """How many numbers training may change."""
    return sum(p.numel() for p in model.parameters())
