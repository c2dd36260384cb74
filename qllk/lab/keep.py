"""What a learner made, kept in the learner's folder: functions that passed their checks, as source,
and the weights of the model that was trained.

    mine/attention.py       a file for each lesson, with a section for each exercise: the function,
                            after all that it needs
    mine/model.safetensors  the weights, under the names of the learner's class

The files can be read and edited. Whoever uses a function from there judges it again.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import re
import symtable
import sys
from collections.abc import Callable
from types import ModuleType

import safetensors
import safetensors.torch
from torch import Tensor, nn

from ..folders import learner_folder
from .folder import save

_HEAD = re.compile(r"^# -{16} (\w+\.\w+): (\w+)$", re.M)
_WEIGHTS = "mine/model.safetensors"
_OURS = "qllk_mine"  # the module name of functions that were read from a file
_PLAIN = (bool, int, float, str, bytes, type(None))


def keep(exercise: str, thing: Callable) -> None:
    """Write a function or class into the file of its lesson, in place of an earlier one.

    Raises   ValueError, in words, when its source cannot stand alone
    """
    text = portable_source(thing)
    sections = _read_sections(exercise) | {exercise: (thing.__name__, text, 0)}
    lesson = exercise.partition(".")[0]
    body = "".join(
        f"\n\n# {'-' * 16} {key}: {name}\n\n{source.strip()}\n"
        for key, (name, source, _) in sections.items()
    )
    save(
        _file(exercise),
        f'"""My functions of the lesson {lesson!r}, which passed their checks."""\n{body}',
    )


def kept(exercise: str) -> Callable | None:
    """The function that was kept for an exercise; None if there is none.

    Raises   whatever running the section raises, after a wrong edit
    """
    if exercise not in (sections := _read_sections(exercise)):
        return None
    name, source, line = sections[exercise]
    path = str(learner_folder() / _file(exercise))
    linecache.checkcache(path)
    namespace = {"__name__": _OURS}
    exec(compile("\n" * line + source, path, "exec"), namespace)
    return namespace[name]


def _file(exercise) -> str:
    return f"mine/{exercise.partition('.')[0]}.py"


def _read_sections(exercise) -> dict[str, tuple[str, str, int]]:
    """By exercise: the name of the function, its source, and the line where it starts."""
    path = learner_folder() / _file(exercise)
    if not path.exists():
        return {}
    text = path.read_text()
    heads = list(_HEAD.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return {
        head[1]: (head[2], text[head.end() : end], text.count("\n", 0, head.end()))
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
    path = learner_folder() / _WEIGHTS
    if not path.exists():
        return None
    try:
        return safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start again") from None


# ---------------------------------------------------------------- source that stands alone


def portable_source(thing: Callable) -> str:
    """The source of a function or class of a notebook, after all that it needs from there.

    Raises   ValueError when it was not written with `def` or `class` at the top of a cell, or needs
             a value that has no short source, such as a tensor
    """
    pieces: dict[str, str] = {}
    _collect(thing, pieces)
    imports = [text for text in pieces.values() if text.startswith(("import ", "from "))]
    others = [text for text in pieces.values() if text not in imports]
    return "\n".join(sorted(imports)) + "\n\n\n" + "\n\n\n".join(others)


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
    node = defined[-1]
    start = min([node.lineno, *(one.lineno for one in node.decorator_list)])
    return "".join(lines[start - 1 : node.end_lineno]).rstrip(), function.__globals__


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
