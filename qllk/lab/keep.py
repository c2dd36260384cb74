"""What a learner made, kept in the learner's folder: functions that passed their checks, as source,
and the weights of the model that was trained.

    mine/attention.py       a file for each lesson, with a section for each exercise: the function,
                            after all that it needs and the sections before it do not have
    mine/model.safetensors  the weights, under the names of the learner's class

The files can be read and edited. Whoever uses a function from there judges it again.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import re
import symtable
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor, nn

from ..folders import learner_folder
from .folder import locked, read, save

_HEADER = '"""My functions of the lesson {!r}, which passed their checks."""\n'
_HEAD = re.compile(r"^# -{16} (\w+\.\w+): (\w+)(?:, after (.+))?$", re.M)
_WEIGHTS = "mine/model.safetensors"
_OURS = "qllk_mine"  # the module name of functions that were read from a file
_PLAIN = (bool, int, float, str, bytes, type(None))


class _Section(NamedTuple):
    name: str  # of the function
    after: list[str]  # the sections that define what it needs
    source: str
    line: int = 0  # where the source starts


def keep(exercise: str, thing: Callable) -> None:
    """Write a function or class into the file of its lesson, in place of an earlier one.

    What the sections before it define already is not written again.

    Raises   ValueError, in words, when its source cannot stand alone
             OSError when another process holds the folder for too long
    """
    new = _portable_pieces(thing)
    with locked():
        old = _read_text(exercise)
        text = _HEADER.format(exercise.partition(".")[0])
        written: dict[str, dict[str, str]] = {}  # the definitions of each section so far
        for key, section in (_split(old) | {exercise: None}).items():
            pieces = new if key == exercise else _pieces_in(old, key)
            forms = [] if key == exercise else [section]
            name = thing.__name__ if key == exercise else section.name
            if pieces:  # a section that no longer runs stays as it is
                lent = [k for k, others in written.items() if others.items() & pieces.items()]
                known = {piece for k in lent for piece in written[k].items()}
                rest = {n: source for n, source in pieces.items() if (n, source) not in known}
                forms += [_Section(name, lent, _join(rest)), _Section(name, [], _join(pieces))]
                written[key] = pieces
            texts = [text + _format_section(key, form) for form in forms]
            text = next((t for t in texts if _pieces_in(t, key) == pieces), texts[-1])
        save(_file(exercise), text)


def kept(exercise: str) -> Callable | None:
    """The function that was kept for an exercise; None if there is none.

    Raises   whatever running its section raises, after a wrong edit
    """
    text = _read_text(exercise)
    return _run(text, exercise) if exercise in _split(text) else None


def _format_section(key, section) -> str:
    after = f", after {', '.join(section.after)}" if section.after else ""
    return f"\n\n# {'-' * 16} {key}: {section.name}{after}\n\n{section.source.strip()}\n"


def _run(text, exercise) -> Callable:
    """The function of a section, which is run after those that define what it needs."""
    path, sections = learner_folder() / _file(exercise), _split(text)
    namespace = {"__name__": _OURS}

    def run(key):
        for lender in sections[key].after:
            run(lender)
        source = "\n" * sections[key].line + sections[key].source
        # Each content has a name of its own, so that a function is found where it was defined.
        file = f"{path}#{hashlib.sha256(source.encode()).hexdigest()[:6]}"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        exec(compile(source, file, "exec"), namespace)

    run(exercise)
    return namespace[sections[exercise].name]


def _pieces_in(text, exercise) -> dict[str, str] | None:
    """What the function of a section and all that it needs are made of; None if it fails."""
    try:
        return _portable_pieces(_run(text, exercise))
    except Exception:
        return None


def _file(exercise) -> str:
    return f"mine/{exercise.partition('.')[0]}.py"


def _read_text(exercise) -> str:
    return (read(_file(exercise)) or b"").decode()


def _split(text) -> dict[str, _Section]:
    """The sections by exercise."""
    heads = list(_HEAD.finditer(text))
    ends = [*(head.start() for head in heads), len(text)][1:]
    return {
        head[1]: _Section(
            head[2],
            re.findall(r"[\w.]+", head[3] or ""),
            text[head.end() : end],
            text.count("\n", 0, head.end()),
        )
        for head, end in zip(heads, ends, strict=True)
    }


# ---------------------------------------------------------------- weights


def keep_weights(model: nn.Module) -> None:
    """Write the weights of a model, in place of earlier ones."""
    weights = {name: w.detach().cpu().contiguous() for name, w in model.state_dict().items()}
    save(_WEIGHTS, safetensors.torch.save(weights))


def kept_weights() -> dict[str, Tensor] | None:
    """The weights that were kept, by name, on the CPU; None if there are none.

    Raises   ValueError when the file is damaged; deleting it is the cure
    """
    path, content = learner_folder() / _WEIGHTS, read(_WEIGHTS)
    if content is None:
        return None
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start again") from None


# ---------------------------------------------------------------- source that stands alone


def portable_source(thing: Callable) -> str:
    """The source of a function or class of a notebook, after all that it needs from there.

    Raises   ValueError when it was not written with `def` or `class` at the top of a cell, or needs
             a value that has no short source, such as a tensor
    """
    return _join(_portable_pieces(thing))


def _portable_pieces(thing) -> dict[str, str]:
    """The definitions by name, each after what it needs."""
    pieces: dict[str, str] = {}
    _collect(thing, pieces)
    return pieces


def _join(pieces) -> str:
    imports = [text for text in pieces.values() if text.startswith(("import ", "from "))]
    others = [text for text in pieces.values() if text not in imports]
    return "\n\n\n".join(filter(None, ["\n".join(sorted(imports)), *others]))


def _collect(thing, pieces) -> None:
    """Add the definition of `thing` to the pieces by name, after what it needs."""
    source, namespace = _definition(thing)
    name = thing.__name__
    if pieces.get(name) == source:
        return
    _add(pieces, name, source)  # before what it needs, so that a function may call itself
    for needed in sorted(_names_needed(source) - {name}):
        if needed in namespace:
            _collect_value(needed, namespace[needed], pieces)
    pieces[name] = pieces.pop(name)


def _collect_value(name, value, pieces) -> None:
    if isinstance(value, ModuleType):
        renamed = "" if value.__name__ == name else f" as {name}"
        _add(pieces, name, f"import {value.__name__}{renamed}")
    elif _is_plain(value):
        _add(pieces, name, f"{name} = {value!r}")
    elif getattr(value, "__module__", None) in ("__main__", _OURS):
        _collect(value, pieces)
        if value.__name__ != name:
            _add(pieces, name, f"{name} = {value.__name__}")
    elif found := _import_of(name, value):
        _add(pieces, name, found)
    else:
        raise ValueError(
            f"it uses {name!r}, a {type(value).__name__} of the notebook; make that an argument"
        )


def _add(pieces, name, text) -> None:
    if pieces.setdefault(name, text) != text:
        raise ValueError(f"it needs two different things called {name!r}; rename one of them")


def _import_of(name, value) -> str | None:
    module, own = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not module or not own or getattr(sys.modules.get(module), own, None) is not value:
        return None
    return f"from {module} import {own}" + ("" if own == name else f" as {name}")


def _is_plain(value) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _definition(thing) -> tuple[str, dict]:
    """The source of a top-level function or class, and the namespace in which it was defined."""
    function = thing
    if inspect.isclass(thing):
        function = next((f for f in vars(thing).values() if inspect.isfunction(f)), None)
    if not inspect.isfunction(function):
        raise ValueError("it is not a function with a source; write it with `def`")
    lines = linecache.getlines(function.__code__.co_filename)
    defined = [
        node
        for node in ast.parse("".join(lines)).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == thing.__name__
    ]
    if not defined:
        raise ValueError("it is not at the top of a cell; write it there, with `def`")
    line = function.__code__.co_firstlineno
    node = next((n for n in defined if _first_line(n) <= line <= n.end_lineno), defined[-1])
    return "".join(lines[_first_line(node) - 1 : node.end_lineno]).rstrip(), function.__globals__


def _first_line(node) -> int:
    return min([node.lineno, *(one.lineno for one in node.decorator_list)])


def _names_needed(source) -> set[str]:
    """The global names that a definition uses, those of its own parts included."""
    tables, names = [symtable.symtable(source, "mine", "exec")], set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        names |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module")
        }
    return names
