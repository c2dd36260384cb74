"""The course as a learner takes it: every lesson in order, in one home, with their own answers."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from qllk.lab.keep import portable_source
from qllk.lab.lessons.exercises import EXERCISES as BY_LESSON

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))[1:]  # 00 is the lab
LESSONS = {path.stem[:2]: path for path in NOTEBOOKS}
EXERCISES = {one.name: one for lesson in BY_LESSON.values() for one in lesson}
STUB = r"^(?:def|class) {name}\(.*(?:\n+(?:[ \t].*)?)*?(?=\n\n\ncheck\.)"
CALL = re.compile(r"^check\.(\w+\.\w+)\(((?:my_|My)\w+)\)$", re.M)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setenv("QLLK_FAST", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder of one learner, who takes the lessons in order."""
    return tmp_path_factory.mktemp("learner")


def as_written_by_a_learner(call):
    """The source of a solution under the learner's own name, as if it had been typed in."""
    exercise, name = EXERCISES[call[1]], call[2]
    source = portable_source(exercise.answer)
    source = re.sub(r"^from qllk\.lab\.lessons\.exercises.*\n", "", source, flags=re.M)
    own = exercise.answer.__name__
    return re.sub(rf"^(def|class) {own}\(", rf"\1 {name}(", source, flags=re.M) + f"\n\n{call[0]}"


def solved(path):
    """A lesson with a solution in place of each stub, and the names of its exercises."""
    notebook, names = nbformat.read(path, as_version=4), []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if "because-time" in cell.metadata.get("tags", []):  # times were judged as shipped
            cell.source = re.sub(r"^assert .*\n?", "", cell.source, flags=re.M)
        for call in CALL.finditer(cell.source):
            names.append(call[1])
            before = STUB.format(name=call[2])
            cell.source = re.sub(before, "", cell.source, flags=re.M)
            cell.source = cell.source.replace(call[0], as_written_by_a_learner(call)).lstrip()
    return notebook, names


def printed_by(notebook, path):
    """Run a notebook; what its cells print."""
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}}).execute()
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return "".join(one.get("text", "") for one in outputs if one.output_type == "stream")


@pytest.mark.parametrize("number", LESSONS)
def test_a_learner_takes_the_course_on_their_own_functions(number, home, monkeypatch):
    monkeypatch.setenv("QLLK_HOME", str(home))
    notebook, names = solved(LESSONS[number])
    printed = printed_by(notebook, LESSONS[number])
    assert len(names) >= 2
    for name in names:
        assert f"{name}: correct\n" in printed
    kept = "".join(path.read_text() for path in home.glob("mine/*.py"))
    used = re.findall(r"^(\w+\.\w+): (your|the library's)\b(?!, since)", printed, re.M)
    for name, whose in used:
        assert whose == ("your" if f" {name}: " in kept else "the library's"), name
    if number in ("09", "10", "11") and " assembly.Model: " in kept:
        assert ("assembly.Model", "your") in used


def test_a_wrong_model_is_caught_and_the_lesson_goes_on_without_it(monkeypatch, tmp_path):
    """Its votes are missing: it runs, has the right shape and learns, and is not `qllk-3`."""
    monkeypatch.setenv("QLLK_HOME", str(tmp_path))
    notebook, _ = solved(LESSONS["08"])
    cell = next(cell for cell in notebook.cells if "class MyModel(" in cell.source)
    wrong = "return self.head(x)\n"
    cell.source, found = re.subn(r"return self\.head\(x\)\.scatter_add.*\n", wrong, cell.source)
    assert found == 1
    printed = printed_by(notebook, LESSONS["08"])
    assert "assembly.Model: wrong values. The votes are missing." in printed
    assert "assembly.Model: the library's\n" in printed
    assert "assembly.Block: your MyBlock\n" in printed
