"""Residual blocks and stacks of them: where norms are placed, and what is recomputed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..checks import build_part, look_up
from ..spec import Part, Spec
from .attention import CrossAttention
from .layers import MLPS, NORMS, Dropout
from .masks import Mask
from .mixers import MIXERS
from .positions import NoPositions

# How a decoder can attend to the output of an encoder.
_CROSS = {"softmax": CrossAttention}


def pre_norm(x, norm, dropout, part):
    """Normalise the part's input, so that nothing interrupts the skip connection."""
    y, state = part(norm(x))
    return x + dropout(y), state


def _post_norm(x, norm, dropout, part):
    """Normalise the sum, the skip connection included.  Vaswani 2017, 3.1."""
    y, state = part(x)
    return norm(x + dropout(y)), state


def _sublayer_norm(x, norm, dropout, part):
    """Normalise the part's output.  Swin v2, Liu 2021, 2111.09883, 3.2."""
    y, state = part(x)
    return x + dropout(norm(y)), state


# Where norms go. Each function returns `part(x)`, added to the residual stream x, and part's state;
# `part` maps a tensor to (tensor, state).
_NORMS_AT = {"pre": pre_norm, "post": _post_norm, "sublayer": _sublayer_norm}


class Block(nn.Module):
    """A mixer over time, then an MLP at each position, each added to the residual stream.

    Options  mlp    None for a block that is its mixer alone
             norm   a function from a width to a norm module
             add    a value of _NORMS_AT, which decides where the norms go
    Shapes   x (B,T,D) -> (B,T,D)
    State    that of the mixer
    """

    def __init__(
        self,
        mixer: nn.Module,
        mlp: nn.Module | None,
        norm: Callable[[int], nn.Module],
        d_model: int,
        dropout: float,
        add: Callable = pre_norm,
    ):
        super().__init__()
        self.norm_mix, self.mix = norm(d_model), mixer
        self.norm_mlp, self.mlp = None if mlp is None else norm(d_model), mlp
        self.dropout = Dropout(dropout)
        self.add = add

    def forward(self, x: Tensor, state=None, mask: Mask | None = None) -> tuple[Tensor, object]:
        x, state = self.add(x, self.norm_mix, self.dropout, lambda x: self.mix(x, state, mask))
        return self.feed_forward(x), state

    def feed_forward(self, x: Tensor) -> Tensor:
        """The MLP with its norm and its skip connection."""
        if self.mlp is None:
            return x
        x, _ = self.add(x, self.norm_mlp, self.dropout, lambda x: (self.mlp(x), None))
        return x


class _CrossBlock(Block):
    """A block that attends to an encoder's output between its mixer and its MLP.

    State    a pair: the mixer's state and the CrossState, which has no default
    """

    def __init__(
        self,
        mixer: nn.Module,
        mlp: nn.Module | None,
        norm: Callable[[int], nn.Module],
        d_model: int,
        dropout: float,
        add: Callable = pre_norm,
        *,
        cross: nn.Module,
    ):
        super().__init__(mixer, mlp, norm, d_model, dropout, add)
        self.norm_cross, self.cross = norm(d_model), cross

    def forward(self, x: Tensor, state: tuple, mask: Mask | None = None) -> tuple[Tensor, tuple]:
        own, source = state
        x, own = self.add(x, self.norm_mix, self.dropout, lambda x: self.mix(x, own, mask))
        x, source = self.add(x, self.norm_cross, self.dropout, lambda x: self.cross(x, source))
        return self.feed_forward(x), (own, source)


class Stack(nn.Module):
    """Blocks in sequence, one for each of `parts`.

    With `recompute` = K, autograd keeps only the input of every K blocks, and the backward pass
    computes the blocks again; the results stay the same.

    Options  parts    the mixer of each block: a name in `mixers`, and options
             cross    the part by which every block also attends to an encoder's output; default:
                      there is no encoder
    Shapes   x (B,T,D) -> (B,T,D)
    State    a tuple with one state per layer
    Cost     `recompute` adds a second forward pass. It keeps layers / K inputs and, while the
             backward pass is at K blocks, all their activations: those of one block
             are over ten times its input, so K = 1 has the lowest peak in all but very deep models
    Paper    Chen 2016, 1604.06174, section 4
    """

    def __init__(
        self,
        spec: Spec,
        d_model: int,
        parts: Sequence[Part],
        positions: NoPositions,
        mixers: dict[str, type] = MIXERS,
        cross: Part | None = None,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            _build_block(spec, d_model, part, positions, mixers, cross) for part in parts
        )
        self.recompute = 0  # set by the trainer; 0 keeps everything

    def forward(
        self, x: Tensor, states: tuple | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, tuple]:
        states = states or (None,) * len(self.blocks)
        if not self.recompute:
            return _run_blocks(self.blocks, x, states, mask)
        after = ()
        for start in range(0, len(self.blocks), self.recompute):
            piece = slice(start, start + self.recompute)
            blocks = self.blocks[piece]
            x, found = checkpoint(
                _run_blocks,
                blocks,
                x,
                states[piece],
                mask,
                use_reentrant=False,
                context_fn=blocks[0].dropout.recompute_contexts,
            )
            after += found
        return x, after


def _build_block(spec, d_model, part, positions, mixers, cross):
    cross = cross and build_part(_CROSS, cross, "cross", (d_model,))
    args = (
        build_part(mixers, part, "mixer", (d_model, positions)),
        build_part(MLPS, spec.mlp, "mlp", (d_model,)),
        norm_of(spec.norm),
        d_model,
        spec.dropout,
        look_up(_NORMS_AT, spec.norm_at, "norm_at"),
    )
    return _CrossBlock(*args, cross=cross) if cross else Block(*args)


def _run_blocks(blocks, x, states, mask):
    """Run the blocks in sequence.  Shapes  x (B,T,D) -> (B,T,D), and a tuple of states"""
    after = []
    for block, state in zip(blocks, states, strict=True):
        x, state = block(x, state, mask)
        after.append(state)
    return x, tuple(after)


def norm_of(part: Part) -> Callable[[int], nn.Module]:
    """Return a function that builds the norm described by `part` for a given width.

    Raises   ValueError for an unknown name or option
    """
    look_up(NORMS, part[0], "norm")
    return lambda d_model: build_part(NORMS, part, "norm", (d_model,))


def cycle(parts: Sequence[Part], layers: int) -> list[Part]:
    """Return one part for each layer, starting over after the last part."""
    return [parts[i % len(parts)] for i in range(layers)]
