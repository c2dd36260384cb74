"""Grade notebooks: judge the functions that they define by the checks of the lessons.

    for result in grade(Path("class-3b")): ...
    python -m qllk.lab.grade NOTEBOOK        judge one, and print the verdicts as JSON

A notebook is not run. Of its cells only imports, definitions and plain constants are executed, then
the function that each `check.lesson.exercise(function)` names is judged. This happens in a process
of its own, in an empty folder, with a time limit and without network. That protects from accidents
and endless loops, not from malice.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from .exercise import NOT_ATTEMPTED, RAISES, Verdict
from .lessons.exercises import EXERCISES
from .show import describe_error

TIMED_OUT = "ran out of time"
UNREADABLE = "cannot be read"
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind")


class Grade(NamedTuple):
    """A verdict on one exercise of one notebook."""

    notebook: str
    exercise: str
    verdict: str
    cause: str


def grade(folder: Path, seconds: float = 120.0) -> Iterator[Grade]:
    """Judge all notebooks in a folder and the folders in it, one after another.

    Raises   ValueError when there is no notebook
    """
    paths = [p for p in sorted(folder.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    if not paths:
        raise ValueError(f"no notebook in {str(folder)!r}; give the folder of the .ipynb files")
    for path in paths:
        name = str(path.relative_to(folder))
        yield from (Grade(name, *row) for row in _in_process(path.resolve(), seconds))


def format_grades(grades: list[Grade]) -> str:
    """The grades as a table with aligned columns, the causes last."""
    widths = [max(map(len, column)) for column in zip(*([Grade._fields, *grades]), strict=True)]
    lines = []
    for row in (Grade._fields, *grades):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def to_csv(grades: list[Grade]) -> str:
    """The grades as comma-separated values, with a header."""
    text = io.StringIO()
    csv.writer(text).writerows([Grade._fields, *grades])
    return text.getvalue()


def _in_process(path, seconds) -> list[list[str]]:
    """The rows (exercise, verdict, cause) of a notebook, judged in a process of its own."""
    with tempfile.TemporaryDirectory() as empty:
        child = subprocess.Popen(
            [sys.executable, "-m", __name__, str(path)],
            cwd=empty,
            env=os.environ | {"QLLK_HOME": empty, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, error = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            return [["", TIMED_OUT, f"Stopped after {seconds:g} seconds."]]
    try:
        return json.loads((out.splitlines() or [""])[-1])
    except ValueError:  # it said what is wrong, or ended before it was judged
        said = error.strip().splitlines() or [f"exit status {child.returncode}"]
        return [["", UNREADABLE, said[-1]]]


# ---------------------------------------------------------------- in the process


def judge_notebook(path: Path) -> list[list[str]]:
    """A row (exercise, verdict, cause) for each exercise of the lessons that a notebook checks.

    Raises   ValueError when the file is no notebook, or checks nothing
    """
    cells = _code_cells(path)
    asked = dict(pair for tree in cells for pair in _checks(tree))
    lessons = {name.partition(".")[0] for name in asked}
    exercises = [one for lesson in EXERCISES if lesson in lessons for one in EXERCISES[lesson]]
    if not exercises:
        raise ValueError("no line check.lesson.exercise(function) in it")
    names: dict = {"__name__": "__main__"}
    faults = [fault for tree in cells if (fault := _define(tree, names))]
    rows = []
    for exercise in exercises:
        function = names.get(asked.get(exercise.name))
        if function is not None:
            verdict = _judge(exercise, function)
        elif asked.get(exercise.name) and faults:
            verdict = Verdict(RAISES, faults[0])
        else:
            verdict = Verdict(NOT_ATTEMPTED)
        rows.append([exercise.name, *verdict])
    return rows


def _judge(exercise, function) -> Verdict:
    try:
        return exercise.judge(function)
    except KeyboardInterrupt as error:  # nobody interrupts here but the function itself
        return Verdict(RAISES, f"{describe_error(error)}.")


def _code_cells(path) -> list[ast.Module]:
    """The syntax trees of the code cells; cells that are no Python are left out."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"not a notebook ({type(error).__name__}: {error})") from None
    trees = []
    for source in sources:
        try:
            trees.append(ast.parse(source))
        except SyntaxError:
            continue
    return trees


def _checks(tree) -> Iterator[tuple[str, str]]:
    """The exercise and the function's name, for each call `check.lesson.exercise(function)`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(
                    value=ast.Attribute(value=ast.Name("check"), attr=lesson), attr=exercise
                ),
                args=[ast.Name(function)],
            ):
                yield f"{lesson}.{exercise}", function


def _define(tree, names) -> str | None:
    """Execute the definitions of a cell; a sentence if one of them fails."""
    kept = [node for node in tree.body if _is_definition(node)]
    for node in kept:
        try:
            exec(compile(ast.Module([node], []), "<notebook>", "exec"), names)
        except BaseException as error:
            return f"{describe_error(error)}."
    return None


def _is_definition(node) -> bool:
    """Whether a statement defines or imports something, or takes up an earlier answer."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.ClassDef():
            return True
        case ast.Assign(value=ast.Call(func=ast.Attribute(attr="mine"))):
            return True
        case ast.Assign(value=value):
            return _is_literal(value)
    return False


def _is_literal(node) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def _refuse_network(event, _):
    if event in _NETWORK:
        raise RuntimeError("there is no network while a notebook is graded")


def main(path: str) -> int:
    """Judge one notebook; the last line printed is a JSON list of rows."""
    sys.addaudithook(_refuse_network)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            rows = judge_notebook(Path(path))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
