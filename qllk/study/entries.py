"""Who can enter the race: each entry is one size of a model or several; the search picks the best.

A win proves nothing about a part until the same model without that part, its **control**, has run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..presets import PRESETS, find_spec
from ..spec import Part, Spec

# The controls that plots compare with: the first one that races.
CONTROLS = (
    "qllk-3 without recall",
    "qllk-3 (width 128) without recall",
    "qllk-2-local",
)
_GPT, _QLLK_2, _QLLK_3 = PRESETS["gpt"], PRESETS["qllk-2"], PRESETS["qllk-3"]


def _attention(width: int) -> Part:
    """Softmax attention with heads of 32."""
    return "softmax", {"heads": width // 32}


def _instead_of_recall(spec: Spec) -> Spec:
    """Softmax attention as the last mixer, with rotary positions, and no recall."""
    mixers = (spec.mixers * spec.layers)[: spec.layers - 1]
    attention = _attention(spec.d_model)
    return spec.but(recall=None, mixers=(*mixers, attention), positions="rotary")


def controls_of(spec: Spec) -> dict[str, Spec]:
    """A model with n-grams and recall without one of its parts, by what is missing.

    "without memory" keeps the path of the recall and all its weights. Its addresses share a single
    row, so each write evicts the one before it. "attention" has softmax attention in place of the
    recall.
    """
    return {
        "without recall": spec.but(recall=None),
        "without n-grams": spec.but(ngrams=None),
        "without memory": spec.but(recall=replace(spec.recall, addresses=1)),
        "attention": _instead_of_recall(spec),
    }


def _gpts(widths: Iterable[int], layers: Iterable[int], **changes: object) -> tuple[Spec, ...]:
    return tuple(
        _GPT.but(d_model=width, layers=number, mixers=(_attention(width),), **changes)
        for width in widths
        for number in layers
    )


def _trunk(**changes) -> tuple[Spec, ...]:
    """qllk-2 with another patch path."""
    return (_QLLK_2.but(patch=replace(_QLLK_2.patch, **changes)),)


def _control(name: str) -> tuple[Spec, ...]:
    return tuple(controls_of(spec)[name] for spec in _SIZES)


_SIZES = tuple(_QLLK_3.but(d_model=width) for width in (64, 128))
# What `python -m qllk bench` races: qllk-3, the same without each of its parts, and a rival.
RACE = {
    "qllk-3": _SIZES,
    "qllk-3 without recall": _control("without recall"),
    "qllk-3 without n-grams": _control("without n-grams"),
    "qllk-3 without memory": _control("without memory"),
    "attention instead of recall": _control("attention"),
    "gpt with n-grams": _gpts((64, 96, 128), (1, 2, 3, 4), ngrams=_QLLK_3.ngrams),
}
# The larger size alone, for budgets so long that it is known to be the better one.
_LONG = {
    "qllk-3 (width 128)": _SIZES[-1:],
    "qllk-3 (width 128) without recall": _control("without recall")[-1:],
}
_OLDER = {
    "qllk-2": (_QLLK_2,),
    "qllk-2-local": tuple(PRESETS["qllk-2-local"].but(d_model=width) for width in (96, 128, 192)),
    "gpt": (_GPT,),
    "gpt (best width)": _gpts((64, 96, 128), (_GPT.layers,)),
}
# Variants of qllk-2, each with one thing changed.
_VARIANTS = {
    "sum that never forgets": _trunk(mixers=(("cumsum", {"normaliser": "rms"}),)),
    "attention on patches": _trunk(mixers=(("softmax", {"heads": 4}),)),
    "matrix state on patches": _trunk(mixers=(("linear", {"heads": 4, "decay": "fixed"}),)),
    "wide trunk": _trunk(d_model=256),
    "patches of 4": _trunk(size=4),
    "one layer after": _trunk(after=1),
    "gelu": (_QLLK_2.but(mlp=("gelu", {"ratio": 4})),),
}
# The models of the field, as large as each other: what lesson 15 compares.
FIELD = {
    "Transformer": PRESETS["gpt-nano"],
    "Linformer": PRESETS["linformer-nano"],
    "linear Transformer": PRESETS["linear-2020-nano"],
    "RWKV-4": PRESETS["rwkv4-nano"],
    "RWKV-7": PRESETS["rwkv7-nano"],
    "RetNet": PRESETS["retnet-nano"],
    "Mamba": PRESETS["mamba-nano"],
    "Mamba-2": PRESETS["mamba2-nano"],
    "delta rule": PRESETS["delta-nano"],
    "QLLK, leak-free": PRESETS["qllk-2-nano"],
    "small qllk-3": PRESETS["qllk-3-nano"].but(ngrams=None),
}
_NANO_NGRAMS = PRESETS["qllk-3-nano"].ngrams
_FIELD = {name: (spec,) for name, spec in FIELD.items()} | {
    f"{name} with n-grams": (spec.but(ngrams=_NANO_NGRAMS),) for name, spec in FIELD.items()
}
ENTRIES = (
    {name: (spec,) for name, spec in PRESETS.items()} | _OLDER | RACE | _LONG | _VARIANTS | _FIELD
)


def find_entry(name: str) -> tuple[Spec, ...]:
    """The sizes of an entry of the race by its name, or a design of your own: what
    `presets.find_spec` finds.

    Raises   ValueError when there is no such entry, as `find_spec` for a file
    """
    if name in ENTRIES:
        return ENTRIES[name]
    try:
        return (find_spec(name),)
    except ValueError as error:
        if name.endswith(".json"):
            raise
        raise ValueError(
            f"no entry {name!r}; choose from {', '.join(ENTRIES)}, or name a Spec's JSON file"
        ) from error
