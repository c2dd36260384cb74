"""Lessons run again: with the solutions put in, and on a library that was broken on purpose."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from nbclient import NotebookClient

import qllk
from qllk.lab.keep import portable_source
from qllk.lab.lessons.exercises import EXERCISES as BY_LESSON

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))[1:]  # 00 is the lab
LESSONS = {path.stem[:2]: path for path in NOTEBOOKS}
EXERCISES = {one.name: one for lesson in BY_LESSON.values() for one in lesson}
STUB = r"^(?:def|class) {name}\(.*(?:\n+(?:[ \t].*)?)*?(?=\n\n\ncheck\.)"
CALL = re.compile(r"^check\.(\w+\.\w+)\(((?:my_|My)\w+)\)$", re.M)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Sabotage(NamedTuple):
    lesson: str
    file: str
    old: str
    new: str


SABOTAGES = {
    "the mask removed": Sabotage(
        "01", "model/kernels.py", "scores.masked_fill(~mask,", "scores.masked_fill(mask & ~mask,"
    ),
    "a chunk sees its future": Sabotage(
        "02",
        "model/kernels.py",
        "future = ~causal_mask(q.shape[2], q.shape[2], device=q.device)",
        "future = torch.zeros(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device)",
    ),
    "key in the place of the query": Sabotage(
        "03", "model/kernels.py", "return q * sums, S", "return k * sums, S"
    ),
    "a sum in half precision": Sabotage("04", "model/kernels.py", "    x = _widen(x)\n", ""),
    "a read that finds a stranger's row": Sabotage(
        "05",
        "model/addresses.py",
        "& (before > 0) & (row.gather(1, found) == read)",
        "& (before > 0)",
    ),
    "a patch that leaks": Sabotage(
        "06",
        "model/patching.py",
        "hints[:, loose + 1 : loose + 1 + T]",
        "hints[:, loose + 2 : loose + 2 + T]",
    ),
    "query and key swapped after fusing": Sabotage(
        "07",
        "model/recurrent.py",
        "q, k, v, g = self.qkvg(x).chunk",
        "k, q, v, g = self.qkvg(x).chunk",
    ),
    "a learning rate that never rises": Sabotage(
        "09",
        "training/optim.py",
        "max(0.01, min(1.0, progress / warmup)) if warmup else 1.0",
        "1.0",
    ),
    "gradients that are never clipped": Sabotage(
        "09",
        "training/trainer.py",
        "optim.clip_gradients(self.model.parameters(), self.recipe.clip)",
        "optim.clip_gradients(self.model.parameters(), math.inf)",
    ),
    "targets that are the inputs": Sabotage(
        "09", "text/objectives.py", "targets = ids[:, 1:].long()", "targets = ids[:, :-1].long()"
    ),
    "a memory that is not carried": Sabotage(
        "10",
        "model/families.py",
        "return logits, ModelState(t + ids.shape[1], parts, ngrams, recall)",
        "return logits, ModelState(t + ids.shape[1], parts, ngrams)",
    ),
    "a judge that covers nothing": Sabotage(
        "11",
        "lab/lessons/race.py",
        "torch.stack([cover(row, blank)[first:]",
        "torch.stack([row.expand(len(row), -1)[first:]",
    ),
    "untouched": Sabotage("03", "model/kernels.py", "return q * sums, S", "return q * sums, S"),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setenv("QLLK_FAST", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def alone(monkeypatch, tmp_path):
    monkeypatch.setenv("QLLK_HOME", str(tmp_path / "home"))


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


@pytest.mark.usefixtures("alone")
def test_a_wrong_model_is_caught_and_the_lesson_goes_on_without_it():
    """Its votes are missing: it runs, has the right shape and learns, and is not `qllk-3`."""
    notebook, _ = solved(LESSONS["08"])
    cell = next(cell for cell in notebook.cells if "class MyModel(" in cell.source)
    wrong = "return self.head(x)\n"
    cell.source, found = re.subn(r"return self\.head\(x\)\.scatter_add.*\n", wrong, cell.source)
    assert found == 1
    printed = printed_by(notebook, LESSONS["08"])
    assert "assembly.Model: wrong values. The votes are missing." in printed
    assert "assembly.Model: the library's\n" in printed
    assert "assembly.Block: your MyBlock\n" in printed


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("sabotage", SABOTAGES.values(), ids=SABOTAGES)
def test_a_broken_library_turns_its_lesson_red(sabotage, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(Path(qllk.__file__).parent, broken / "qllk")
    (broken / "data").mkdir()
    shutil.copy(ROOT / "data" / "corpora.json", broken / "data")
    target = broken / "qllk" / sabotage.file
    text = target.read_text()
    assert text.count(sabotage.old) == 1
    target.write_text(text.replace(sabotage.old, sabotage.new))
    path = shutil.copy(LESSONS[sabotage.lesson], tmp_path)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=300", str(path)]
    env = os.environ | {"PYTHONPATH": str(broken)}
    run = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    healthy = sabotage.old == sabotage.new
    assert run.returncode == (0 if healthy else 1), run.stdout[-2000:]
    assert ("1 failed" in run.stdout) != healthy
