"""The description of a model as plain frozen data. Imports no torch.

    Spec(d_model=128, layers=2, mixers=(("conv", {"width": 8}),))

A part of a model is a pair `(name, options)`. Fields whose parts rarely need options also accept
the name by itself. Names and options are checked when the model is built.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from .checks import check_dropout, check_fields, check_positive, make_fields_plain

Part = tuple[str, dict]


def as_part(value: object, what: str) -> Part:
    """Return `value` as a pair of name and options, if it is a tuple or JSON's list of the two.

    Raises   ValueError naming `what`, when it is anything else
    """
    match value:
        case (str() as name, dict() as options):
            return name, dict(options)
    raise ValueError(f"{what} must be a pair (name, options), got {value!r}")


def _as_named(value, what) -> Part:
    """Like `as_part`, where the name may stand by itself."""
    return as_part((value, {}) if isinstance(value, str) else value, what)


def _as_parts(values, what) -> tuple[Part, ...]:
    if not isinstance(values, tuple | list) or not values:
        raise ValueError(f"{what} must be one or more pairs (name, options), got {values!r}")
    return tuple(as_part(value, what) for value in values)


@dataclass(frozen=True)
class Patch:
    """The slow path of a patched model: a stack of layers that runs once every `size` bytes."""

    size: int  # R, bytes per patch
    d_model: int  # width of the slow path
    layers: int  # of the slow path
    mixers: tuple[Part, ...]  # cycled over these layers
    after: int = 1  # how many of the model's byte layers follow the point where both paths join

    def __post_init__(self):
        make_fields_plain(self)
        check_positive("Patch", size=self.size, d_model=self.d_model, layers=self.layers)
        object.__setattr__(self, "mixers", _as_parts(self.mixers, "Patch.mixers"))


@dataclass(frozen=True)
class Ngrams:
    """Tables of hashed contexts: each context of an id adds a row to the id's embedding."""

    contexts: tuple[int | str, ...]  # as in `model.contexts`: numbers of ids, or names of words
    rows: int  # of each context's table
    dropout: float = 0.0  # the probability of leaving out a context's row in training

    def __post_init__(self):
        make_fields_plain(self)
        check_positive("Ngrams", rows=self.rows)
        check_dropout("Ngrams", self.dropout)
        object.__setattr__(self, "contexts", as_contexts(self.contexts, "Ngrams"))


@dataclass(frozen=True)
class Recall:
    """A memory with addresses: each context reads what followed it earlier in the text."""

    contexts: tuple[int | str, ...]  # as in `model.contexts`; each hashes to an address
    addresses: int  # A, rows of each context's state
    rows: int  # of the table that embeds what each context reads

    def __post_init__(self):
        make_fields_plain(self)
        check_positive("Recall", addresses=self.addresses, rows=self.rows)
        object.__setattr__(self, "contexts", as_contexts(self.contexts, "Recall"))


def as_contexts(contexts: object, owner: str) -> tuple[int | str, ...]:
    """Return a tuple or list of one or more contexts as a tuple.

    Raises   ValueError naming the owner, when it is anything else
    """
    if not isinstance(contexts, tuple | list) or not contexts:
        raise ValueError(f"{owner}: contexts must be a list of one or more, got {contexts!r}")
    return tuple(contexts)


_MOST_LAYERS = 256  # a model of so many is built in a second, and deeper ones train nowhere
_MOST_JSON = 100_000  # characters; each layer has a mixer of its own at most
# Fields that exist in one family of models only.
_ONLY_IN = {
    **dict.fromkeys(("patch", "ngrams", "recall"), "decoder"),
    "segments": "encoder",
    "cross": "encoder-decoder",
}
# Fields that hold plain data of their own, or None.
_RECORDS = {"patch": Patch, "ngrams": Ngrams, "recall": Recall}


@dataclass(frozen=True)
class Spec:
    """One model. `spec.but(layers=4)` is the same model with one thing changed.

    Raises   ValueError naming the field, when a size is below one, a part is not a pair, or the
             field belongs to another family
    """

    d_model: int  # D
    layers: int  # at full resolution, one step per id
    mixers: tuple[Part, ...]  # cycled over the layers: two mixers and six layers give three of each
    mlp: Part = ("gelu", {"ratio": 4})  # the second half of each layer
    norm: str | Part = "rms"  # of each layer
    positions: str | Part = "none"  # the position encoding
    context: int | None = None  # the longest input; required by learned positions
    vocab_size: int = 256  # number of ids, including the special ids of the family
    ngrams: Ngrams | None = None  # what is added to the embedding, if anything
    recall: Recall | None = None  # the memory with addresses, if the model has one
    patch: Patch | None = None  # the slow path, if the model has one
    tied: bool = False  # the head shares the weights of the embedding
    dropout: float = 0.0  # the probability of dropping an activation in training
    # "pre": on the input of each sublayer; "post": on its residual sum; "sublayer": on its output.
    norm_at: str = "pre"
    norm_in: str | Part = "none"  # between the embedding and the layers
    norm_out: str | Part = "same"  # between the layers and the head; "same": like `norm`
    head: str | Part = "linear"  # from the last layer to the logits
    family: str = "decoder"  # "decoder", "encoder" or "encoder-decoder"
    cross: Part | None = None  # how the decoder of an encoder-decoder attends to the source
    segments: int = 0  # number of segment types that an encoder distinguishes

    def __post_init__(self):
        make_fields_plain(self)
        check_positive("Spec", d_model=self.d_model, layers=self.layers, vocab_size=self.vocab_size)
        object.__setattr__(self, "mixers", _as_parts(self.mixers, "Spec.mixers"))
        object.__setattr__(self, "mlp", as_part(self.mlp, "Spec.mlp"))
        if self.segments:
            check_positive("Spec", segments=self.segments)
        if self.context is not None:
            check_positive("Spec", context=self.context)
        for name in ("norm", "positions", "norm_in", "norm_out", "head"):
            object.__setattr__(self, name, _as_named(getattr(self, name), f"Spec.{name}"))
        if self.cross is not None:
            object.__setattr__(self, "cross", _as_named(self.cross, "Spec.cross"))
        for name, kind in _RECORDS.items():
            if isinstance(value := getattr(self, name), dict):
                object.__setattr__(self, name, kind(**check_fields(kind, value)))
        if self.patch and not 0 <= self.patch.after < self.layers:
            raise ValueError(
                f"Patch.after={self.patch.after} must be 0 or more and leave at least one of the "
                f"{self.layers} layers before the patches are made"
            )
        if self.depth > _MOST_LAYERS:
            raise ValueError(f"Spec: at most {_MOST_LAYERS} layers can be built, got {self.depth}")
        check_dropout("Spec", self.dropout)
        if not isinstance(self.tied, bool):
            raise ValueError(f"Spec.tied must be true or false, got {self.tied!r}")
        for name, family in _ONLY_IN.items():
            if getattr(self, name) and self.family != family:
                raise ValueError(f"Spec.{name} is for the family {family!r}, not {self.family!r}")
        if self.family == "encoder-decoder" and not self.cross:
            raise ValueError("Spec: an encoder-decoder needs cross, a pair (name, options)")

    @property
    def depth(self) -> int:
        """The number of layers, those of the slow path included."""
        return self.layers + (self.patch.layers if self.patch else 0)

    def but(self, **changes: object) -> Spec:
        """This spec with some fields changed."""
        return replace(self, **changes)

    def split_window(self, window: int) -> tuple[int, int]:
        """Split a window into rows that the model can read: (number of rows, ids per row).

        Ids that do not fill a row are left out.
        """
        check_positive("Spec", window=window)
        length = min(window, self.context or window)
        return window // length, length

    def to_json(self) -> str:
        """The spec as a JSON object of its fields."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """The inverse of `to_json`.

        Raises   ValueError when the text is not JSON, lacks a field, or has an unknown one
        """
        if len(text) > _MOST_JSON:
            raise ValueError(f"a Spec has at most {_MOST_JSON:,} characters, got {len(text):,}")
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a Spec must be JSON: {error}") from None
        try:
            return cls(**check_fields(cls, values))
        except TypeError as error:
            raise ValueError(f"not a Spec: {error}") from None
