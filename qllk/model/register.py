"""Parts of your own, under a name that a Spec can use."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ..checks import look_up
from ..files import user_path
from .layers import HEADS, MLPS, NORMS
from .mixers import MIXERS
from .positions import POSITIONS

_TABLES = {"mixer": MIXERS, "mlp": MLPS, "norm": NORMS, "positions": POSITIONS, "head": HEADS}
_BUILT_IN = {kind: frozenset(table) for kind, table in _TABLES.items()}


_FILES: list[str] = []  # those that `load_parts` has run


def register(kind: str, name: str, part: Callable[..., nn.Module]) -> None:
    """Let Specs use a part of your own: `register("mixer", "mine", MyMixer)`.

    From then on `("mine", options)` is a part like any other, until this process ends. Registering
    a name again replaces the part, so a cell of a notebook can run twice. A checkpoint holds the
    name of a part and not its code: register it before you load one.

    How a part is called, with its options as keywords:

        "mixer"              part(d_model, positions, **options), see `model.mixers`
        "mlp"                part(d_model, **options), x (B,T,D) -> (B,T,D)
        "norm"               part(d_model, **options), x (B,T,D) -> (B,T,D)
        "positions"          part(d_model, context, **options), see `model.positions`
        "head"               part(d_model, vocab_size, **options), x (B,T,D) -> (B,T,vocab_size)

    Raises   ValueError for an unknown kind, and for the name of a part of this library
    """
    table = look_up(_TABLES, kind, "kind of part")
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of a {kind} must be a text, got {name!r}")
    if name in _BUILT_IN[kind]:
        raise ValueError(f"the {kind} {name!r} belongs to this library; choose another name")
    table[name] = part


def load_parts(*paths: str | Path) -> None:
    """Run Python files that register parts: what `python -m qllk --parts FILE` does.

    The processes of a race run the same files, so a part from a file can race; one that is
    registered in a notebook's cell can train there.

    Raises   FileNotFoundError when there is no such file; what the file itself raises
    """
    for path in map(user_path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"no file {str(path)!r} with parts of your own")
        runpy.run_path(str(path))
        _FILES.append(str(path.resolve()))


def loaded_parts() -> tuple[str, ...]:
    """The files that `load_parts` has run, for processes that are to have the same parts."""
    return tuple(_FILES)
