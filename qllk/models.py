"""Whole models, assembled from a Spec. The contract of a mixer, on ids instead of vectors:

    logits, state = model.run(ids, state)        logits = model(ids)

ids are (B,T) bytes of any integer type, logits (B,T,vocab_size). Training uses the second,
streaming the first. An encoder sees both ways and has the second alone. An encoder-decoder is
called `model(source, ids)`, and its `run` starts from the state `model.read(source)`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint

from .layers import HEADS, MLPS, NORMS, Dropout, choose, make
from .mixers import BIDIRECTIONAL_MIXERS, CROSS_MIXERS, MIXERS
from .patching import PatchPath
from .positions import BIDIRECTIONAL_POSITIONS, POSITIONS, Learned
from .presets import PRESETS
from .spec import Spec


class Block(nn.Module):
    """Mix over time, then think at each position, each behind a norm and beside a skip."""

    def __init__(self, mixer, mlp, norm, d_model, dropout):
        super().__init__()
        self.norm_mix, self.mix = norm(d_model), mixer
        self.norm_mlp, self.mlp = norm(d_model), mlp
        self.dropout = Dropout(dropout)

    def forward(self, x, state=None):
        y, state = self.mix(self.norm_mix(x), state)
        x = x + self.dropout(y)
        return x + self.dropout(self.mlp(self.norm_mlp(x))), state


class PostNormBlock(Block):
    """The norms act on the sums, so that no skip runs through unchanged.  Vaswani 2017, 3.1."""

    def forward(self, x, state=None):
        y, state = self.mix(x, state)
        x = self.norm_mix(x + self.dropout(y))
        return self.norm_mlp(x + self.dropout(self.mlp(x))), state


class SublayerNormBlock(Block):
    """The norms act on what each part adds.  Swin v2, Liu 2021, 2111.09883, 3.2."""

    def forward(self, x, state=None):
        y, state = self.mix(x, state)
        x = x + self.dropout(self.norm_mix(y))
        return x + self.dropout(self.norm_mlp(self.mlp(x))), state


class CrossBlock(Block):
    """A block that looks, between the two, at what an encoder read.

    State    the mixer's, and that of `cross`, which must be given
    """

    def __init__(self, *block, cross):
        super().__init__(*block)
        _, _, norm, d_model, _ = block
        self.norm_cross, self.cross = norm(d_model), cross

    def forward(self, x, state):
        before, memory = state
        y, before = self.mix(self.norm_mix(x), before)
        x = x + self.dropout(y)
        y, memory = self.cross(self.norm_cross(x), memory)
        x = x + self.dropout(y)
        return x + self.dropout(self.mlp(self.norm_mlp(x))), (before, memory)


BLOCKS = {"pre": Block, "post": PostNormBlock, "sublayer": SublayerNormBlock}
CROSS_BLOCKS = {"pre": CrossBlock}


class Stack(nn.Module):
    """Layers one after the other; the mixers of `parts` in turn, over and over.

    Given `recompute` = K, autograd keeps only the input of every K blocks, and the backward pass
    computes the blocks once more; no number changes.

    Shapes   x (B,T,D) -> (B,T,D)
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
            )
            for part in parts
        )
        self.recompute = 0  # set by whoever trains; 0 keeps all

    def block(self, spec):
        return choose(BLOCKS, spec.norm_at, "norm_at")

    def forward(self, x, states=None):
        states = states or (None,) * len(self.blocks)
        if not self.recompute:
            return run_blocks(self.blocks, x, states)
        after = ()
        for start in range(0, len(self.blocks), self.recompute):
            piece = slice(start, start + self.recompute)
            blocks = self.blocks[piece]
            x, found = checkpoint(
                *(run_blocks, blocks, x, states[piece]),
                use_reentrant=False,
                context_fn=blocks[0].dropout.twice,
            )
            after += found
        return x, after


def run_blocks(blocks, x, states):
    """Each block after the one before.  Shapes  x (B,T,D) -> (B,T,D), and a tuple of states"""
    after = []
    for block, state in zip(blocks, states, strict=True):
        x, state = block(x, state)
        after.append(state)
    return x, tuple(after)


class BidirectionalStack(Stack):
    """Layers of an encoder. They keep no state."""

    mixers = BIDIRECTIONAL_MIXERS


class CrossStack(Stack):
    """Layers of a decoder that looks at an encoder's text."""

    def block(self, spec):
        cross = make(CROSS_MIXERS, spec.cross, "cross", spec.d_model)
        return partial(choose(CROSS_BLOCKS, spec.norm_at, "norm_at"), cross=cross)


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

    Shapes   ids (B,T) -> logits (B,T,vocab_size)
    State    ModelState(bytes read, the layers' states)
    Raises   ValueError when ids are not (B,T), are empty, or lie outside the vocabulary
    """

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab_size, spec.d_model)
        self.positions = make(POSITIONS, spec.positions, "positions", spec.d_model, spec.context)
        self.norm_in = norm_of(spec.norm_in)(spec.d_model)
        self.body = self._body(cycle(spec.mixers, spec.layers))
        self.norm = norm_of(spec.norm_out or spec.norm)(spec.d_model)
        self.head = make(HEADS, spec.head, "head", spec.d_model, spec.vocab_size)
        initialise(self)

    def _body(self, parts) -> nn.Module:
        return Stack(self.spec, self.spec.d_model, parts, self.positions)

    def run(self, ids, state=None):
        ids = checked_ids(ids, self.spec.vocab_size)
        t, parts = state or (0, None)
        x = self.norm_in(self.positions.add(self.embed(ids), t))
        x, parts = self.body(x, parts)
        return self.head(self.norm(x)), ModelState(t + ids.shape[1], parts)

    def forward(self, ids):
        return self.run(ids)[0]


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

    Shapes   x (B,T,D) -> (B,T,D)
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

    def forward(self, x):
        return self.norm(self.body(self.norm_in(self.positions.add(x, 0)))[0])


class MaskedLanguageModel(nn.Module):
    """Guess bytes that were hidden from those on both sides.  BERT, Devlin 2018, 1810.04805.

    Shapes   ids (B,T), and of the same shape `segments`, none means that all are of the first kind
             ->  logits (B,T,vocab_size)
    Raises   ValueError when ids or segments are not (B,T), are empty, or lie outside their range
    """

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab_size, spec.d_model)
        self.segments = nn.Embedding(spec.segments, spec.d_model) if spec.segments else None
        self.encoder = Encoder(spec)
        self.head = make(HEADS, spec.head, "head", spec.d_model, spec.vocab_size)
        initialise(self)

    def forward(self, ids, segments=None):
        ids = checked_ids(ids, self.spec.vocab_size)
        x = self.embed(ids)
        if self.segments:
            kinds = torch.zeros_like(ids) if segments is None else segments
            x = x + self.segments(checked_ids(kinds, self.spec.segments))
        elif segments is not None:
            raise ValueError("segments were given to a model that has none; set Spec.segments")
        return self.head(self.encoder(x))

    def run(self, ids, state=None):
        raise ValueError(
            "an encoder sees both ways, so it cannot read on from a state or write a text: call "
            "model(ids), or build a model of the family 'decoder'"
        )


class Seq2Seq(LanguageModel):
    """Write one text while looking at another: an encoder reads it, each layer looks at it.

        state = model.read(source)        logits, state = model.run(ids, state)

    Both texts share one embedding.

    Shapes   source (B,N), ids (B,T) -> logits (B,T,vocab_size)
    State    ModelState(bytes written, a pair per layer: its mixer's state, the source's KV)
    Paper    T5, Raffel 2019, 1910.10683
    Raises   ValueError when ids do not fit the vocabulary, or `run` is not told the source
    """

    def __init__(self, spec: Spec):
        super().__init__(spec)
        self.encoder = Encoder(spec)
        initialise(self)  # again: now the skip has the encoder's layers too

    def _body(self, parts):
        return CrossStack(self.spec, self.spec.d_model, parts, self.positions)

    def read(self, source) -> ModelState:
        memory = self.encoder(self.embed(checked_ids(source, self.spec.vocab_size)))
        return ModelState(0, tuple((None, block.cross.read(memory)) for block in self.body.blocks))

    def run(self, ids, state=None):
        if state is None:
            raise ValueError("an encoder-decoder starts from model.read(source), got no state")
        return super().run(ids, state)

    def forward(self, source, ids):
        return self.run(ids, self.read(source))[0]


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


def parameters(model) -> int:
    """How many numbers training may change."""
    return sum(p.numel() for p in model.parameters())
