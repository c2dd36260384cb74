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

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))[1:]  # 00 is the lab
LESSONS = {path.stem[:2]: path for path in NOTEBOOKS}
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
    "a judge that covers nothing": Sabotage(
        "11",
        "lab/lessons/race.py",
        "torch.stack([cover(row, blank)[first:]",
        "torch.stack([row.expand(len(row), -1)[first:]",
    ),
    "untouched": Sabotage("03", "model/kernels.py", "return q * sums, S", "return q * sums, S"),
}


@pytest.fixture(autouse=True)
def small_and_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("QLLK_FAST", "1")
    monkeypatch.setenv("QLLK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("number", LESSONS)
def test_with_its_solutions_every_exercise_is_correct(number):
    path, wanted = LESSONS[number], []
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            wanted += [name for name, _ in CALL.findall(cell.source)]
            if "because-time" in cell.metadata.get("tags", []):  # times were judged as shipped
                cell.source = re.sub(r"^assert .*\n?", "", cell.source, flags=re.M)
            cell.source = CALL.sub(r"\2 = check.\1.answer\ncheck.\1(\2)", cell.source)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}}).execute()
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
    assert len(wanted) >= 2
    for name in wanted:
        assert f"{name}: correct\n" in printed


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
