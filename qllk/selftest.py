"""Whether an installation works, in about a minute: from a text to a lesson in a notebook."""

from __future__ import annotations

import math
import os
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import nbformat
import torch
from nbclient import NotebookClient

from .folders import CLONE, PACKAGE, provide_home
from .model.families import build
from .model.sample import generate
from .text.corpora import corpus
from .training import checkpoint
from .training.recipe import Recipe
from .training.trainer import Trainer

_MODEL = "qllk-2-nano"
_RECIPE = Recipe(steps=20, window=128, batch=4, validate_every=1000)


def check_installation(args: Namespace) -> None:
    """Print one line for each check; nothing stays behind but the prepared text.

    Raises   ValueError when a check fails
    """
    provide_home()
    failed = 0
    for what, check in _CHECKS.items():
        started = time.monotonic()
        try:
            verdict, told = "ok", check()
        except Exception as error:  # whatever it is, the next check goes on
            verdict, told = "FAILED", f"{type(error).__name__}: {error}"
            failed += 1
        print(f"{verdict:6} {what}: {told} ({time.monotonic() - started:.1f} s)", flush=True)
    if failed:
        raise ValueError(
            f"{failed} of {len(_CHECKS)} checks failed; `qllk doctor` may name the cause"
        )


def _keep_the_law() -> str:
    model = build(_MODEL, seed=0).double().eval()
    ids = torch.randint(256, (1, 96), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, _ = model.run(ids)
        first, state = model.run(ids[:, :37])
        second, _ = model.run(ids[:, 37:], state)
    difference = float((torch.cat([first, second], dim=1) - whole).abs().max())
    if not difference < 1e-9:
        raise ArithmeticError(f"the logits differ by {difference:.1e}")
    return f"within {difference:.0e}"


def _read_a_text() -> str:
    text = corpus("stdlib")
    return f"{len(text.train) + len(text.valid):,} bytes"


def _train() -> str:
    records = list(Trainer(_MODEL, corpus("stdlib"), _RECIPE))
    first, last = records[0].bits_per_byte, records[-1].bits_per_byte
    if not (math.isfinite(last) and last < first):
        raise ArithmeticError(f"{first:.2f} bits per byte became {last:.2f}")
    return f"{first:.2f} bits per byte became {last:.2f}"


def _save_and_resume() -> str:
    unbroken = Trainer(_MODEL, corpus("stdlib"), _RECIPE)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, "run.safetensors")
        for _ in range(5):
            next(unbroken)
        checkpoint.save(unbroken, path)
        resumed = checkpoint.load(path)
    expected, found = next(unbroken).bits_per_byte, next(resumed).bits_per_byte
    if expected != found:
        raise ArithmeticError(f"step 6 has {found} bits per byte instead of {expected}")
    return f"and writes {generate(resumed.model, 'import ', 8)!r}"


def _run_a_lesson() -> str:
    path = next((CLONE or PACKAGE).glob("notebooks/03_*.ipynb"))
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        client = NotebookClient(
            notebook,
            timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            extra_arguments=["--log-level=ERROR"],
        )
        client.execute(env=os.environ | {"QLLK_HOME": folder, "QLLK_FAST": "1"})
    return path.stem


_CHECKS = {
    "a model gives the same in one piece and in two": _keep_the_law,
    "the corpus stdlib is read": _read_a_text,
    "a model learns": _train,
    "a run is saved, resumed, and goes on as if it had not stopped": _save_and_resume,
    "a lesson runs in a notebook": _run_a_lesson,
}
