"""Whole models, assembled from a Spec. The contract of a mixer, on ids instead of vectors:

    logits, state = model.run(ids, state)        logits = model(ids)

ids are (B,T) bytes of any integer type, logits (B,T,vocab_size). Training uses the second,
streaming the first. An encoder sees both ways and has the second alone. An encoder-decoder is
called `model(source, ids)`, and its `run` starts from the state `model.read(source)`.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint

from .kernels import same_document
from .layers import HEADS, MLPS, NORMS, Dropout, choose, make
from .mixers import BIDIRECTIONAL_MIXERS, CROSS_MIXERS, MASKED, MIXERS
from .patching import PatchPath
from .positions import BIDIRECTIONAL_POSITIONS, POSITIONS, Learned
from .presets import PRESETS
from .spec import Spec


def pre_norm(x, norm, dropout, part, *state):
    """The norm acts on what the part reads: the skip runs through unchanged."""
    y, state = part(norm(x), *state)
    return x + dropout(y), state


def post_norm(x, norm, dropout, part, *state):
    """The norm acts on the sum, so that no skip runs through unchanged.  Vaswani 2017, 3.1."""
    y, state = part(x, *state)
    return norm(x + dropout(y)), state


def sublayer_norm(x, norm, dropout, part, *state):
    """The norm acts on what the part adds.  Swin v2, Liu 2021, 2111.09883, 3.2."""
    y, state = part(x, *state)
    return x + dropout(norm(y)), state


NORMS_AT = {"pre": pre_norm, "post": post_norm, "sublayer": sublayer_norm}


class Block(nn.Module):
    """Mix over time, then think at each position, each beside a skip, with norms as `add` has it.

    Options  add, a function of NORMS_AT
    """

    def __init__(self, mixer, mlp, norm, d_model, dropout, add=pre_norm):
        super().__init__()
        self.norm_mix, self.mix = norm(d_model), mixer
        self.norm_mlp, self.mlp = norm(d_model), mlp
        self.dropout = Dropout(dropout)
        self.add = add

    def forward(self, x, state=None, *keep):
        x, state = self.add(x, self.norm_mix, self.dropout, self.mix, state, *keep)
        x, _ = self.add(x, self.norm_mlp, self.dropout, self.think)
        return x, state

    def think(self, x):
        """The MLP as a part without a state."""
        return self.mlp(x), None


class CrossBlock(Block):
    """A block that looks, between the two, at what an encoder read.

    State    the mixer's, and that of `cross`, which must be given
    """

    def __init__(self, *block, cross):
        super().__init__(*block)
        _, _, norm, d_model, *_ = block
        self.norm_cross, self.cross = norm(d_model), cross

    def forward(self, x, state):
        before, source = state
        x, before = self.add(x, self.norm_mix, self.dropout, self.mix, before)
        x, source = self.add(x, self.norm_cross, self.dropout, self.cross, source)
        x, _ = self.add(x, self.norm_mlp, self.dropout, self.think)
        return x, (before, source)


class Stack(nn.Module):
    """Layers one after the other; the mixers of `parts` in turn, over and over.

    Given `recompute` = K, autograd keeps only the input of every K blocks, and the backward pass
    computes the blocks once more; no number changes.

    Shapes   x (B,T,D) -> (B,T,D); a mask, if there is one, as the mixers take it
    State    a tuple, one state per layer
    Cost     with `recompute` a second forward pass. Kept are layers / K inputs and, while the
             backward pass is at K blocks, all that these make: since one block makes ten times
             what it is given and more, K = 1 has the lowest peak in all but very deep models
    Paper    Chen 2016, 1604.06174, section 4
    """

    mixers = MIXERS

    def __init__(self, spec, d_model, parts, positions):
        super().__init__()
        norm = norm_of(spec.norm)
        self.blocks = nn.ModuleList(
            self.block(spec)(
                make(self.mixers, part, "mixer", d_model, positions),
                make(MLPS, spec.mlp, "mlp", d_model),
                norm,
                d_model,
                spec.dropout,
                choose(NORMS_AT, spec.norm_at, "norm_at"),
            )
            for part in parts
        )
        self.recompute = 0  # set by whoever trains; 0 keeps all

    def block(self, spec):
        return Block

    def forward(self, x, states=None, *keep):
        states = states or (None,) * len(self.blocks)
        if not self.recompute:
            return run_blocks(self.blocks, x, states, *keep)
        after = ()
        for start in range(0, len(self.blocks), self.recompute):
            piece = slice(start, start + self.recompute)
            blocks = self.blocks[piece]
            x, found = checkpoint(
                *(run_blocks, blocks, x, states[piece], *keep),
                use_reentrant=False,
                context_fn=blocks[0].dropout.twice,
            )
            after += found
        return x, after


def run_blocks(blocks, x, states, *keep):
    """Each block after the one before.  Shapes  x (B,T,D) -> (B,T,D), and a tuple of states"""
    after = []
    for block, state in zip(blocks, states, strict=True):
        x, state = block(x, state, *keep)
        after.append(state)
    return x, tuple(after)


class BidirectionalStack(Stack):
    """Layers of an encoder. They keep no state."""

    mixers = BIDIRECTIONAL_MIXERS


class CrossStack(Stack):
    """Layers of a decoder that looks at an encoder's text."""

    def block(self, spec):
        return partial(CrossBlock, cross=make(CROSS_MIXERS, spec.cross, "cross", spec.d_model))


def norm_of(part):
    """A norm by name and options, yet without its width."""
    choose(NORMS, part[0], "norm")
    return partial(make, NORMS, part, "norm")


def cycle(parts, layers):
    return [parts[i % len(parts)] for i in range(layers)]


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
        self.positions = make(POSITIONS, spec.positions, "positions", spec.d_model, spec.context)
        self.norm_in = norm_of(spec.norm_in)(spec.d_model)
        self.body = self._body(cycle(spec.mixers, spec.layers))
        self.norm = norm_of(spec.norm_out or spec.norm)(spec.d_model)
        self.head = make(HEADS, spec.head, "head", spec.d_model, spec.vocab_size)

    def _body(self, parts) -> nn.Module:
        return Stack(self.spec, self.spec.d_model, parts, self.positions)

    def run(self, ids, state=None, *keep):
        ids = checked_ids(ids, self.spec.vocab_size)
        t, parts = state or (0, None)
        x = self.norm_in(self.positions.add(self.embed(ids), t))
        x, parts = self.body(x, parts, *keep)
        return self.head(self.norm(x)), ModelState(t + ids.shape[1], parts)

    def forward(self, ids, documents=None):
        if documents is None:
            return self.run(ids)[0]
        check_documents_stay_apart(self.spec)
        return self.run(ids, None, same_document(fitting("documents", documents, ids)))[0]


def check_documents_stay_apart(spec):
    """Refuse to pack for a model whose layers would carry one document into the next."""
    leaks = [name for name, _ in spec.mixers if name not in MASKED] + ["patches"] * bool(spec.patch)
    if leaks:
        raise ValueError(
            f"{', '.join(dict.fromkeys(leaks))} would carry one document of a row into the next; "
            f"give each a row of its own, or mix by {' and '.join(sorted(MASKED))} alone"
        )


def fitting(what, given, ids):
    """One value for each id.

    Raises   ValueError when the shapes differ
    """
    if given.shape != ids.shape:
        raise ValueError(
            f"{what} must say something of each id, so be {tuple(ids.shape)}; got "
            f"{tuple(given.shape)}"
        )
    return given


def checked_ids(ids, vocab_size):
    """The ids as torch indexes with them.  Shapes  (B,T) of any integer type -> (B,T) int64

    Raises   ValueError when they are not (B,T), are empty, or lie outside the vocabulary
    """
    if ids.ndim != 2 or 0 in ids.shape or ids.dtype.is_floating_point:
        raise ValueError(
            f"ids must be whole numbers of shape (batch, time), neither empty; got "
            f"{tuple(ids.shape)} of {ids.dtype}. For one sequence use ids[None]"
        )
    ids = ids.long()
    # Looking at values would stall a GPU; there, torch's own device check catches it. Fake ids,
    # on which models are counted, have no values.
    visible = ids.device.type == "cpu" and not isinstance(ids, FakeTensor)
    if visible and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(
            f"ids must lie in 0 … {vocab_size - 1}, got {ids.min().item()} … {ids.max().item()}"
        )
    return ids


class PatchedLanguageModel(LanguageModel):
    """A language model with two clocks: byte layers, and a trunk that runs once every R bytes.

        x = before(embed(bytes))        x = after(x + path(x))        logits = head(norm(x))

    `path` is a `PatchPath` around a `Stack` of its own width. Take it away (`spec.but(patch=None)`)
    and the byte layers alone remain: the control of every claim about the trunk.
    """

    def _body(self, parts):
        return TwoClocks(self.spec, parts, self.positions)


class TwoClocks(nn.Module):
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
        self.positions = make(
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
        self.head = make(HEADS, spec.head, "head", spec.d_model, spec.vocab_size)
        initialise(self)

    def forward(self, ids, segments=None, documents=None):
        ids = checked_ids(ids, self.spec.vocab_size)
        x = self.embed(ids)
        if self.segments:
            kinds = torch.zeros_like(ids) if segments is None else segments
            x = x + self.segments(checked_ids(kinds, self.spec.segments))
        elif segments is not None:
            raise ValueError("segments were given to a model that has none; set Spec.segments")
        keep = None if documents is None else same_document(fitting("documents", documents, ids))
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
        source = checked_ids(source, self.spec.vocab_size)
        keep = None if text is None else checked_text(text, source)[:, None, None]  # (B,1,1,N)
        memory = self.encoder(self.embed(source), keep)
        sources = (block.cross.read(memory, keep) for block in self.body.blocks)
        return ModelState(0, tuple((None, source) for source in sources))

    def run(self, ids, state=None):
        if state is None:
            raise ValueError("an encoder-decoder starts from model.read(source), got no state")
        return super().run(ids, state)

    def forward(self, source, ids, text=None):
        return self.run(ids, self.read(source, text))[0]


def checked_text(text, source):
    """Which places of the source are text.

    Raises   ValueError when it is not bool, or of another shape
    """
    if text.dtype != torch.bool:
        raise ValueError(
            f"text must be bool, true where the source is no padding; got {text.dtype}. Numbers of "
            "documents become that by documents >= 0"
        )
    return fitting("text", text, source)


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
    spec = what if isinstance(what, Spec) else choose(PRESETS, what, "preset")
    family = PatchedLanguageModel if spec.patch else choose(FAMILIES, spec.family, "family")
    if seed is None:
        return family(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family(spec)


@contextmanager
def evaluating(model):
    """Inside, the model drops nothing out and records no gradients; afterwards it is as before."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def parameters(model) -> int:
    """How many numbers training may change."""
    return sum(p.numel() for p in model.parameters())
