"""Whole models, assembled from a Spec. They are called like mixers, on ids instead of vectors:

    logits, state = model.run(ids, state)        logits = model(ids)

ids are (B,T) of any integer type, logits (B,T,vocab_size). Training uses the second form, streaming
the first. An encoder is bidirectional and has only the second. An encoder-decoder is called as
`model(source, ids)`, and its `run` starts from the state `model.encode(source)`.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..checks import build_part, check_ids, check_same_shape, look_up
from ..presets import find_spec
from ..spec import Spec
from .attention import BidirectionalAttention
from .blocks import Block, Stack, cycle, norm_of
from .contexts import ContextState
from .inputs import Lookup, Ngrams, Recall, RecallState
from .layers import HEADS, LinearHead, ResidualLinear
from .linformer import BidirectionalLinformer
from .masks import Mask, refuse_mask
from .patching import PatchPath
from .positions import POSITIONS, BidirectionalRelative, Learned

# The tables that an encoder uses in place of MIXERS and POSITIONS.
_ENCODER_MIXERS = {"softmax": BidirectionalAttention, "linformer": BidirectionalLinformer}
_ENCODER_POSITIONS = ChainMap({"relative": BidirectionalRelative}, POSITIONS)


class ModelState(NamedTuple):
    """State of a model: the number of ids read, and the states of its layers and inputs."""

    t: int
    parts: tuple
    ngrams: ContextState | None = None
    recall: RecallState | None = None


class LanguageModel(nn.Module):
    """Predict each id from all ids before it: embed, stack, norm, head.

    Where a row is packed from several documents, `documents` keeps them apart: a position attends
    only to positions with the same number. Relative and rotary positions then give each document
    the logits it would have by itself; learned and sinusoidal ones still count from the start of
    the row.

    Shapes   ids (B,T), documents (B,T), default: each row is one document
             ->  logits (B,T,vocab_size)
    State    ModelState(ids read, the layers' states)
    Raises   ValueError when ids are not (B,T), are empty, or lie outside the vocabulary; when
             documents have another shape, or a mixer cannot keep them apart
    """

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab_size, spec.d_model)
        self.ngrams = spec.ngrams and Ngrams(spec.d_model, spec.ngrams)
        self.recall = spec.recall and Recall(spec.d_model, spec.recall, spec.vocab_size)
        self.positions = _part(POSITIONS, spec, "positions", (spec.d_model, spec.context))
        self.norm_in = norm_of(spec.norm_in)(spec.d_model)
        parts = cycle(spec.mixers, spec.layers)
        self.body = (
            PatchedStack(spec, parts, self.positions)
            if spec.patch
            else Stack(spec, spec.d_model, parts, self.positions, cross=spec.cross)
        )
        self.norm = _norm_out(spec)
        self.head = _part(HEADS, spec, "head", (spec.d_model, spec.vocab_size))

    def run(
        self, ids: Tensor, state: ModelState | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, ModelState]:
        ids = check_ids(ids, self.spec.vocab_size)
        t, parts, ngrams, recall = state or ModelState(0, None)
        x = self.positions.add(self.embed(ids), t)
        if self.ngrams:
            refuse_mask(mask, self.ngrams)
            hints, ngrams = self.ngrams(ids, ngrams)
            x = x + hints
        if self.recall:
            refuse_mask(mask, self.recall)
            hints, found, recall = self.recall(ids, recall)
            x = x + hints
        x, parts = self.body(self.norm_in(x), parts, mask)
        x = self.norm(x)
        logits = self.head(x)
        if self.recall:
            logits = self.recall.vote(logits, x, found)
        return logits, ModelState(t + ids.shape[1], parts, ngrams, recall)

    def remember(self, ids: Tensor, state: ModelState | None = None) -> ModelState:
        """The state after reading ids with the inputs alone: what a recall knows, and no layer."""
        t, _, ngrams, recall = state or ModelState(0, None)
        with torch.no_grad():
            if self.ngrams:
                _, ngrams = self.ngrams(ids, ngrams)
            if self.recall:
                _, _, recall = self.recall(ids, recall)
        return ModelState(t + ids.shape[1], None, ngrams, recall)

    def forward(self, ids: Tensor, documents: Tensor | None = None) -> Tensor:
        if documents is None:
            return self.run(ids)[0]
        mask = Mask(documents=check_same_shape("documents", documents, ids))
        return self.run(ids, mask=mask)[0]

    def final_state(self, ids: Tensor) -> ModelState:
        """The state after reading ids."""
        return self.run(ids)[1]

    def example_inputs(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Return arguments for `forward` made from one text; the logits are at the last ones."""
        return (ids,)


class PatchedStack(nn.Module):
    """The body of a model with two clocks: byte layers, and a trunk that runs once every R bytes.

        x = before(x)        x = after(x + path(norm(x)))

    `path` is a `PatchPath` around a `Stack` of its own width. Without it (`spec.but(patch=None)`)
    only the byte layers remain: the control experiment for every claim about the trunk.

    Shapes   x (B,T,D) -> (B,T,D)
    State    the states of before, path and after
    Raises   ValueError for a mask that hides more than the future
    """

    def __init__(self, spec: Spec, parts: list, positions: nn.Module):
        super().__init__()
        patch, join = spec.patch, len(parts) - spec.patch.after
        self.before = Stack(spec, spec.d_model, parts[:join], positions)
        slow = cycle(patch.mixers, patch.layers)
        trunk = Stack(spec, patch.d_model, slow, positions)  # without `add`, which the bytes had
        self.norm = norm_of(spec.norm)(spec.d_model)
        self.path = PatchPath(spec.d_model, patch.size, trunk, patch.d_model)
        self.after = Stack(spec, spec.d_model, parts[join:], positions)

    def forward(
        self, x: Tensor, states: tuple | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, tuple]:
        before, path, after = states or (None, None, None)
        x, before = self.before(x, before, mask)
        hints, path = self.path(self.norm(x), path, mask)
        x, after = self.after(x + hints, after, mask)
        return x, (before, path, after)


class _Encoder(nn.Module):
    """Encode a text, each position with context from both sides: positions, norm, layers, norm.

    Shapes   x (B,T,D)  ->  (B,T,D)
    """

    def __init__(self, spec: Spec):
        super().__init__()
        self.positions = _part(_ENCODER_POSITIONS, spec, "positions", (spec.d_model, spec.context))
        self.norm_in = norm_of(spec.norm_in)(spec.d_model)
        parts = cycle(spec.mixers, spec.layers)
        self.body = Stack(spec, spec.d_model, parts, self.positions, _ENCODER_MIXERS)
        self.norm = _norm_out(spec)

    def forward(self, x: Tensor, mask: Mask | None = None) -> Tensor:
        x = self.norm_in(self.positions.add(x, 0))
        return self.norm(self.body(x, None, mask)[0])


class MaskedLanguageModel(nn.Module):
    """Predict hidden ids from both sides.  BERT, Devlin 2018, 1810.04805.

    A position attends only to positions with the same number in `documents`. Where rows are padded,
    these numbers can be bool: True for text and False for padding.

    Shapes   ids (B,T)
             documents (B,T), default: each row is one document   segments (B,T), default: all zero
             ->  logits (B,T,vocab_size)
    Raises   ValueError when one of them is not (B,T), is empty, or lies outside its range
    """

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab_size, spec.d_model)
        self.segments = nn.Embedding(spec.segments, spec.d_model) if spec.segments else None
        self.encoder = _Encoder(spec)
        self.head = _part(HEADS, spec, "head", (spec.d_model, spec.vocab_size))

    def forward(
        self, ids: Tensor, documents: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        ids = check_ids(ids, self.spec.vocab_size)
        x = self.embed(ids)
        if self.segments:
            kinds = torch.zeros_like(ids) if segments is None else segments
            x = x + self.segments(check_ids(kinds, self.spec.segments))
        elif segments is not None:
            raise ValueError("segments were given to a model that has none; set Spec.segments")
        if documents is None:
            return self.head(self.encoder(x))
        mask = Mask(causal=False, documents=check_same_shape("documents", documents, ids))
        return self.head(self.encoder(x, mask))

    def run(self, ids: Tensor, state: None = None) -> tuple[Tensor, None]:
        raise ValueError(
            "an encoder is bidirectional, so it cannot continue from a state or generate text: "
            "call model(ids), or build a model of the family 'decoder'"
        )

    def final_state(self, ids: Tensor, documents: Tensor | None = None) -> None:
        """Return None: an encoder has no state."""

    def example_inputs(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Return arguments for `forward` made from one text; the logits are at the last ones."""
        return (ids,)


class Seq2Seq(LanguageModel):
    """Write one text given another, the source: each layer attends to an encoder's output for it.

        state = model.encode(source)        logits, state = model.run(ids, state)

    Both texts share one embedding. `text` is False where the source is padded; the state keeps it.

    Shapes   source (B,N), ids (B,T), text (B,N) bool, default: no padding
             ->  logits (B,T,vocab_size)
    State    ModelState(ids written, a pair per layer: its mixer's state and a CrossState)
    Paper    T5, Raffel 2019, 1910.10683
    Raises   ValueError when ids do not fit the vocabulary, text does not fit the source, or `run`
             is given no state
    """

    def __init__(self, spec: Spec):
        super().__init__(spec)
        self.encoder = _Encoder(spec)

    def encode(self, source: Tensor, text: Tensor | None = None) -> ModelState:
        """The state before the first id is written.

        Shapes   source (B,N), text (B,N) bool, False for padding; default: no padding
        """
        source = check_ids(source, self.spec.vocab_size)
        mask = None if text is None else Mask(causal=False, text=_check_text(text, source))
        encoded = self.encoder(self.embed(source), mask)
        states = (block.cross.init_state(encoded, text) for block in self.body.blocks)
        return ModelState(0, tuple((None, state) for state in states))

    def run(
        self, ids: Tensor, state: ModelState | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, ModelState]:
        if state is None:
            raise ValueError("an encoder-decoder starts from model.encode(source), got no state")
        return super().run(ids, state, mask)

    def forward(self, source: Tensor, ids: Tensor, text: Tensor | None = None) -> Tensor:
        return self.run(ids, self.encode(source, text))[0]

    def final_state(self, source: Tensor, ids: Tensor, text: Tensor | None = None) -> ModelState:
        """The state after reading the source and writing ids."""
        return self.run(ids, self.encode(source, text))[1]

    def example_inputs(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Return arguments for `forward` made from one text; the logits are at the last ones."""
        return ids, ids


def _part(table, spec, field, args):
    return build_part(table, getattr(spec, field), field, args)


def _norm_out(spec):
    """The norm between the layers and the head."""
    part = spec.norm if spec.norm_out[0] == "same" else spec.norm_out
    return norm_of(part)(spec.d_model)


def _check_text(text, source):
    if text.dtype != torch.bool:
        raise ValueError(
            f"text must be bool, True where the source is not padding; got {text.dtype}. If "
            "padding has document number -1, pass documents >= 0"
        )
    return check_same_shape("text", text, source)


def initialise(model: nn.Module) -> None:
    """Draw all weights from normal distributions, and set the biases of linear layers to zero.

    The standard deviation is 1 / sqrt(width of the input), and less in residual layers and in the
    head. Activations then start at a steady size at any width and depth, and the first loss is near
    that of a uniform guess. GPT-2, Radford 2019, 2.3, for the scale of residual layers; its code
    for learned positions, at half the scale of the embeddings they are added to. A tied embedding
    is also the head, and its scale lies between those of an embedding and of a head: were it as
    small as other heads, its vectors would change too much in a training step.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    parts = sum(1 if block.mlp is None else 2 for block in blocks)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            scale = parts**-0.5 if isinstance(module, ResidualLinear) else 1.0
            scale = 0.2 if isinstance(module, LinearHead) else scale
            nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding) and not isinstance(module, Lookup):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
    size = model.spec.d_model**-0.5
    if model.spec.tied:
        size *= 0.4
        model.embed.weight = model.head.weight
        nn.init.normal_(model.embed.weight, std=size)
    for module in model.modules():
        if isinstance(module, Learned):
            nn.init.normal_(module.table.weight, std=0.5 * size)


_FAMILIES = {
    "decoder": LanguageModel,
    "encoder": MaskedLanguageModel,
    "encoder-decoder": Seq2Seq,
}


def build(what: str | Path | Spec, *, seed: int | None = None) -> nn.Module:
    """Build the model that a preset's name, a Spec, or the path of a Spec's JSON describes.

    A seed makes its weights reproducible.

    Raises   ValueError for an unknown preset or part; the message lists the known ones
    """
    spec = find_spec(what)
    family = look_up(_FAMILIES, spec.family, "family")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = family(spec)
        initialise(model)
    return model


class _SkipInit(TorchFunctionMode):
    """Leaves out the functions of `torch.nn.init`, which on the meta device are slow."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", *args[:1])
        return func(*args, **(kwargs or {}))


def sketch(what: str | Path | Spec) -> nn.Module:
    """The same as `build` on the meta device, where tensors have shapes but take no memory.

    Raises   ValueError as `build`, and when a weight is larger than any memory
    """
    try:
        with torch.device("meta"), _SkipInit():
            return build(what)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise ValueError(f"the model is too large: {error}") from None


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Disable dropout and gradients within a context; the model's mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def count_parameters(model: nn.Module) -> int:
    """The number of parameters, frozen ones included; shared ones are counted once."""
    return sum(p.numel() for p in model.parameters())
