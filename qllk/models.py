"""Whole models, assembled from a Spec. The contract of a mixer, on ids instead of vectors:

    logits, state = model.run(ids, state)        logits = model(ids)

ids are (B,T) bytes of any integer type, logits (B,T,vocab_size). Training uses the second,
streaming the first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .layers import MLPS, NORMS, Dropout, choose, make
from .mixers import MIXERS
from .patching import PatchPath
from .positions import POSITIONS
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

    def __init__(self, spec, d_model, parts, positions):
        super().__init__()
        norm = choose(NORMS, spec.norm, "norm")
        self.blocks = nn.ModuleList(
            Block(
                make(MIXERS, part, "mixer", d_model, positions),
                make(MLPS, spec.mlp, "mlp", d_model),
                norm,
                d_model,
                spec.dropout,
            )
            for part in parts
        )
        self.recompute = 0  # set by whoever trains; 0 keeps all

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
        self.positions = choose(POSITIONS, spec.positions, "positions")(spec.d_model, spec.context)
        self.body = self._body(cycle(spec.mixers, spec.layers))
        self.norm = choose(NORMS, spec.norm, "norm")(spec.d_model)
        self.head = nn.Linear(spec.d_model, spec.vocab_size, bias=False)
        initialise(self)
        if spec.tied:
            self.embed.weight = self.head.weight  # small, or the first loss would be large

    def _body(self, parts) -> nn.Module:
        return Stack(self.spec, self.spec.d_model, parts, self.positions)

    def run(self, ids, state=None):
        ids = checked_ids(ids, self.spec.vocab_size)
        t, parts = state or (0, None)
        x = self.positions.add(self.embed(ids), t)
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
    # Looking at values would stall a GPU; there, torch's own device check catches it.
    if ids.device.type == "cpu" and (ids.min() < 0 or ids.max() >= vocab_size):
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
        self.norm = choose(NORMS, spec.norm, "norm")(spec.d_model)
        self.path = PatchPath(spec.d_model, patch.size, trunk, patch.d_model)
        self.after = Stack(spec, spec.d_model, parts[join:], positions)

    def forward(self, x, states=None):
        before, path, after = states or (None, None, None)
        x, before = self.before(x, before)
        hints, path = self.path(self.norm(x), path)
        x, after = self.after(x + hints, after)
        return x, (before, path, after)


def initialise(model):
    """Normal weights scaled to their input, smaller where they add to the skip or make logits.

    So activations start at a steady size at any width and depth, and the first loss is near that
    of a uniform guess.  GPT-2, Radford 2019, 2.3, for the layers' share of the skip.
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


def build(what: str | Spec, *, seed: int | None = None) -> LanguageModel:
    """The model of a preset's name or of a Spec. A seed makes its weights reproducible.

    Raises   ValueError when there is no such preset or part; it lists those that there are
    """
    spec = what if isinstance(what, Spec) else choose(PRESETS, what, "preset")
    family = PatchedLanguageModel if spec.patch else LanguageModel
    if seed is None:
        return family(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family(spec)


def parameters(model) -> int:
    """How many numbers training may change."""
    return sum(p.numel() for p in model.parameters())
