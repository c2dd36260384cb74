"""Lessons run again on a library that was broken on purpose: each has to notice."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import qllk

ROOT = Path(__file__).resolve().parents[1]
LESSONS = {path.name[:2]: path for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")}

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
    "votes for what was not found": Sabotage(
        "08", "model/inputs.py", "(self.strength(x) * (found >= 0)).to", "self.strength(x).to"
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
    "a decoder that never asks its encoder": Sabotage(
        "16",
        "model/attention.py",
        "return q, state.k, state.v, Mask(causal=False, text=state.text)",
        "return q, 0 * state.k, 0 * state.v, Mask(causal=False, text=state.text)",
    ),
    "a masked model that is asked for everything": Sabotage(
        "16",
        "text/objectives.py",
        "ids.where(chosen, IGNORED))",
        "ids)",
    ),
    "tiles that are not rescaled": Sabotage(
        "13",
        "model/kernels.py",
        "fade, weight = (m - larger).exp(), (scores - larger).exp()",
        "fade, weight = 1.0, (scores - larger).exp()",
    ),
    "a fast memory that counts no stores": Sabotage(
        "13",
        "lab/lessons/tiles.py",
        "        self.moved += x.numel()\n        return x\n",
        "        return x\n",
    ),
    "a decay that is applied to what is new": Sabotage(
        "15",
        "model/kernels.py",
        "return last.exp().transpose(2, 3) * S + (k * (last - total).exp()).transpose(2, 3) @ v",
        "return last.exp().transpose(2, 3) * S + (k * last.exp()).transpose(2, 3) @ v",
    ),
    "a block that is summed up before it is complete": Sabotage(
        "15",
        "model/linformer.py",
        "ended = old + r * torch.arange(blocks, device=q.device)",
        "ended = old + r * torch.arange(1, blocks + 1, device=q.device)",
    ),
    "a rotation the wrong way round": Sabotage(
        "12",
        "model/positions.py",
        "return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)",
        "return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)",
    ),
    "a gate on the wrong branch": Sabotage(
        "12",
        "model/layers.py",
        "return self.out(F.silu(gate) * up)",
        "return self.out(gate * F.silu(up))",
    ),
    "the last merge first": Sabotage(
        "17",
        "text/tokens.py",
        "best = min(pairs, key=lambda pair: self._ranks.get(pair, never))",
        "best = max(pairs, key=lambda pair: self._ranks.get(pair, -1))",
    ),
    "documents that are not told apart": Sabotage(
        "17",
        "text/windows.py",
        "owner = torch.full(new.shape, number)",
        "owner = torch.full(new.shape, 0)",
    ),
    "a window that is one key too wide": Sabotage(
        "14",
        "model/masks.py",
        "(cols > rows - window)",
        "(cols >= rows - window)",
    ),
    "latents of another layer's keys": Sabotage(
        "14",
        "model/attention.py",
        "return heads.split((self.d_nope, heads.shape[1] - self.d_nope), dim=1)",
        "return heads.flip(0).split((self.d_nope, heads.shape[1] - self.d_nope), dim=1)",
    ),
    "untouched": Sabotage("03", "model/kernels.py", "return q * sums, S", "return q * sums, S"),
}


def rows():
    """Those of part two are for `make stress`: every change runs their notebooks twice already."""
    for name, sabotage in SABOTAGES.items():
        later = [pytest.mark.long] if sabotage.lesson > "11" else []
        yield pytest.param(sabotage, id=name, marks=later)


@pytest.mark.parametrize("sabotage", rows())
def test_a_broken_library_turns_its_lesson_red(sabotage, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(Path(qllk.__file__).parent, broken / "qllk")
    target = broken / "qllk" / sabotage.file
    text = target.read_text()
    assert text.count(sabotage.old) == 1
    target.write_text(text.replace(sabotage.old, sabotage.new))
    path = shutil.copy(LESSONS[sabotage.lesson], tmp_path)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=300", str(path)]
    small_and_alone = {
        "QLLK_FAST": "1",
        "OMP_NUM_THREADS": "1",
        "QLLK_HOME": str(tmp_path / "home"),
    }
    env = os.environ | small_and_alone | {"PYTHONPATH": str(broken)}
    run = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    healthy = sabotage.old == sabotage.new
    assert run.returncode == (0 if healthy else 1), run.stdout[-2000:]
    assert ("1 failed" in run.stdout) != healthy


def test_every_lesson_has_its_sabotage():
    assert {sabotage.lesson for sabotage in SABOTAGES.values()} == LESSONS.keys() - {"00"}
