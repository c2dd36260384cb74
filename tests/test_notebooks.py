"""The stored notebooks: run once from the top, comparable, without widgets, thin."""

import ast
import json
import os
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import nbformat
import pytest

import qllk
from qllk.lab import notebooks

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TAGS = ["nbval-ignore-output", "because-widget"]


def code_of(path):
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def names_of(source):
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.parse("\n".join(lines)).body if isinstance(node, kinds)}


def public_names():
    modules = [m.name for m in pkgutil.walk_packages(qllk.__path__, "qllk.")]
    found = [vars(import_module(name)) for name in modules if not name.endswith("__main__")]
    return {name for names in found for name in names if not name.startswith("_")}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_a_stored_notebook_is_in_order(path):
    assert notebooks.check(path) == []


def test_a_notebook_defines_nothing_the_package_has(path):
    assert not set().union(*map(names_of, code_of(path))) & public_names()


def test_a_notebook_downloads_and_installs_nothing(path):
    for source in code_of(path):
        assert not any(word in source for word in ("pip ", "conda ", "urlopen", "requests.", "!"))


def test_the_cells_are_short(path):
    assert all(len(source.splitlines()) <= 25 for source in code_of(path))


def test_a_picture_ends_its_cell_or_nobody_sees_it(path):
    for source in code_of(path):
        if re.search(r"^picture\(", source, re.M):
            last = ast.parse(source).body[-1]
            assert ast.unparse(last).startswith("picture("), source


# ---------------------------------------------------------------- the tool itself


def stream(text):
    return nbformat.v4.new_output("stream", text=text)


def widget():
    return nbformat.v4.new_output("display_data", {notebooks.WIDGET: {}, "text/plain": "Lab()"})


def cell(number, output=None, tags=(), source="print(1)"):
    made = nbformat.v4.new_code_cell(source, execution_count=number)
    made.outputs, made.metadata = [output] if output else [], {"tags": list(tags)}
    return made


def faults(tmp_path, *cells, **metadata):
    path = tmp_path / "some.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells), metadata=metadata), path)
    return " | ".join(notebooks.check(path))


def test_the_check_accepts_a_good_notebook(tmp_path):
    assert faults(tmp_path, cell(1, stream("1\n")), cell(2, None, TAGS)) == ""


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        ([cell(None, stream("1"))], "counts are not 1, 2, 3"),
        ([cell(2, stream("1"))], "counts are not 1, 2, 3"),
        ([cell(1, stream("1"), TAGS[:1])], "needs both tags or neither"),
        ([cell(1, stream("1"), TAGS[1:])], "needs both tags or neither"),
        ([cell(1, stream("1")), cell(2, widget(), TAGS)], "code cell 2: stores a widget"),
        ([cell(1, nbformat.v4.new_output("error", ename="E"))], "stores an error"),
        ([cell(1, stream("1"), TAGS)], "only 0 of 1 cells with output are compared"),
        ([cell(1)], "only 0 of 0 cells"),
        ([cell(1, stream(f"in {Path.home()}/x"))], "stores a path of this machine"),
    ],
)
def test_the_check_refuses(tmp_path, cells, fault):
    assert fault in faults(tmp_path, *cells)


@pytest.mark.parametrize("home", ["~", "/"])
def test_a_user_without_a_home_folder_can_check_notebooks(tmp_path, monkeypatch, home):
    monkeypatch.setattr(os.path, "expanduser", lambda path: home)
    assert faults(tmp_path, cell(1, stream("a/b ~ 1\n")), cell(2, None, TAGS)) == ""


def test_the_check_refuses_stored_widget_state(tmp_path):
    assert "widget state" in faults(tmp_path, cell(1, stream("1\n")), widgets={})


@pytest.mark.slow
def test_refresh_runs_a_notebook_and_stores_all_but_widgets(tmp_path, monkeypatch):
    path = tmp_path / "some.ipynb"
    monkeypatch.chdir(tmp_path)
    shown = "import ipywidgets\nprint('shown')\nipywidgets.IntSlider()"
    cells = [cell(7, stream("old"), source="print(6 * 7)"), cell(3, None, TAGS, shown)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    assert notebooks.main(["refresh", str(path)]) == 0
    first, second = nbformat.read(path, as_version=4).cells
    assert (first.execution_count, first.outputs[0].text) == (1, "42\n")
    assert [output.output_type for output in second.outputs] == ["stream"]
    assert notebooks.main(["check", str(path)]) == 0


def test_a_wrong_call_explains_itself(capsys):
    assert notebooks.main(["polish", "x.ipynb"]) == 2
    assert "refresh|check FILE" in capsys.readouterr().out
