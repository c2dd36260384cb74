"""Residual blocks and stacks of them: where the norms go, and what is recomputed for gradients."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..checks import build_part, look_up
from .layers import MLPS, NORMS, Dropout
from .mixers import BIDIRECTIONAL_MIXERS, CROSS_MIXERS, MIXERS


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
                build_part(self.mixers, part, "mixer", d_model, positions),
                build_part(MLPS, spec.mlp, "mlp", d_model),
                norm,
                d_model,
                spec.dropout,
                look_up(NORMS_AT, spec.norm_at, "norm_at"),
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
        return partial(
            CrossBlock, cross=build_part(CROSS_MIXERS, spec.cross, "cross", spec.d_model)
        )


def norm_of(part):
    """A norm by name and options, yet without its width."""
    look_up(NORMS, part[0], "norm")
    return partial(build_part, NORMS, part, "norm")


def cycle(parts, layers):
    return [parts[i % len(parts)] for i in range(layers)]
