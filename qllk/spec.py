"""What a model is, as plain frozen data. Imports no torch.

    Spec(d_model=128, layers=2, mixers=(("conv", {"width": 8}),))

A part is a pair `(name, options)`; where options are rare, the name alone will do. `mixers` is
cycled over the layers: two mixers and six layers give three of each. Names are looked up, and
options checked, when the model is built.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from .checks import check_fields, check_positive

Part = tuple[str, dict]


def as_part(value, what: str) -> Part:
    """A pair of name and options, from a tuple or from JSON's list."""
    match value:
        case (str() as name, dict() as options):
            return name, dict(options)
    raise ValueError(f"{what} must be a pair (name, options), got {value!r}")


def as_named(value, what: str) -> Part:
    """The same, or a name alone, which takes no options."""
    return (value, {}) if isinstance(value, str) else as_part(value, what)


def as_parts(values, what: str) -> tuple[Part, ...]:
    if not isinstance(values, tuple | list) or not values:
        raise ValueError(f"{what} must be one or more pairs (name, options), got {values!r}")
    return tuple(as_part(value, what) for value in values)


@dataclass(frozen=True)
class Patch:
    """The slow path of a patched model: a stack that runs once every `size` bytes.

    `after` of the outer model's layers come after the two paths join, the rest come before.
    """

    size: int  # R, bytes per patch
    d_model: int
    layers: int
    mixers: tuple[Part, ...]
    after: int = 1

    def __post_init__(self):
        check_positive("Patch", size=self.size, d_model=self.d_model, layers=self.layers)
        object.__setattr__(self, "mixers", as_parts(self.mixers, "Patch.mixers"))


# Fields that one family of models has.
_ONLY_IN = {"patch": "decoder", "segments": "encoder", "cross": "encoder-decoder"}


@dataclass(frozen=True)
class Spec:
    """One model. Change one thing at a time with `spec.but(layers=4)`.

    Raises   ValueError naming the field, when a size is below one or a part is not a pair
    """

    d_model: int  # D
    layers: int
    mixers: tuple[Part, ...]
    mlp: Part = ("gelu", {"ratio": 4})
    norm: str | Part = "rms"
    positions: str | Part = "none"
    context: int | None = None  # longest input; only learned positions need it
    vocab_size: int = 256
    patch: Patch | None = None
    tied: bool = False
    dropout: float = 0.0
    norm_at: str = "pre"  # a layer's norms: before its parts, after, or (sublayer) on what they add
    norm_in: str | Part = "none"  # between the embedding and the layers
    norm_out: str | Part = "same"  # between the layers and the head; "same": another `norm`
    head: str | Part = "linear"
    family: str = "decoder"
    cross: Part | None = None  # how the decoder of an encoder-decoder looks at the encoder's text
    segments: int = 0  # how many kinds of segments an encoder tells apart

    def __post_init__(self):
        check_positive("Spec", d_model=self.d_model, layers=self.layers, vocab_size=self.vocab_size)
        object.__setattr__(self, "mixers", as_parts(self.mixers, "Spec.mixers"))
        object.__setattr__(self, "mlp", as_part(self.mlp, "Spec.mlp"))
        if self.segments:
            check_positive("Spec", segments=self.segments)
        if self.context is not None:
            check_positive("Spec", context=self.context)
        for name in ("norm", "positions", "norm_in", "norm_out", "head"):
            object.__setattr__(self, name, as_named(getattr(self, name), f"Spec.{name}"))
        if self.cross is not None:
            object.__setattr__(self, "cross", as_named(self.cross, "Spec.cross"))
        if isinstance(self.patch, dict):
            object.__setattr__(self, "patch", Patch(**check_fields(Patch, self.patch)))
        if self.patch and not 0 <= self.patch.after < self.layers:
            raise ValueError(
                f"Patch.after={self.patch.after} must leave at least one of the {self.layers} "
                "layers before the patches are made"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"Spec: dropout must lie in [0, 1), got {self.dropout!r}")
        for name, family in _ONLY_IN.items():
            if getattr(self, name) and self.family != family:
                raise ValueError(f"Spec.{name} is for the family {family!r}, not {self.family!r}")
        if self.family == "encoder-decoder" and not self.cross:
            raise ValueError("Spec: an encoder-decoder needs cross, a pair (name, options)")

    def but(self, **changes) -> Spec:
        """This spec with some fields changed."""
        return replace(self, **changes)

    def cut(self, window: int) -> tuple[int, int]:
        """In how many rows a model reads a window of so many ids, and how many ids each row has."""
        check_positive("Spec", window=window)
        reads = min(window, self.context or window)
        return window // reads, reads

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """The inverse of `to_json`.

        Raises   ValueError when the text is no JSON or names a field that a Spec has not
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a Spec must be JSON: {error}") from None
        try:
            return cls(**check_fields(cls, values))
        except TypeError as error:
            raise ValueError(f"not a Spec: {error}") from None
