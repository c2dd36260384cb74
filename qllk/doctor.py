"""What this machine can do with qllk, and what stands in the way, with its cause and its cure."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
import torch
from jupyter_client.kernelspec import KernelSpecManager
from packaging.requirements import Requirement

from . import __version__
from .folders import CLONE, PACKAGE, cache_folder, learner_folder
from .study import console
from .text.corpora import corpus_names, describe_names
from .training import devices

_GIB = 2**30
_OPTIONAL = {
    "tokenizers": "tokenizer.json files, and learning bpe- merges fast",
    "datasets": "streamed corpora",
    "torchao": "training in float8",
}
_CONTAINER = Path("/sys/fs/cgroup")  # where the limits of a container are
_COMPILERS = ("c++", "g++", "clang++", "cl")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def examine(args: Namespace) -> None:
    """Print the facts of this machine and the findings, as JSON if the option says so."""
    facts = devices.describe_machine() | {
        "qllk": __version__,
        "installed": str(CLONE or PACKAGE),
        "threads": torch.get_num_threads(),
        "memory": devices.free_bytes("cpu"),
        "texts": str(cache_folder()),
        "learner": str(learner_folder()),
        "corpora": corpus_names(),
        "optional": {name: _version(name) for name in _OPTIONAL},
        "devices": [
            device._asdict() | {"fastest": devices.fastest_precision(device.name)}
            for device in devices.available()
        ],
        "findings": list(_findings()),
    }
    console.print_result(facts, _format(facts), args.json)


def _format(facts: dict) -> str:
    lines = [
        f"qllk {facts['qllk']}, torch {facts['torch']}, Python {facts['python']}",
        f"installed in {facts['installed']}",
    ]
    for device in facts["devices"]:
        offers = ", ".join(device["precisions"])
        lines.append(f"{device['name']}: {device['label']}")
        lines.append(f"    trains in {offers}; fastest here: {device['fastest']}")
    lines.append(f"memory: {facts['memory'] / _GIB:.1f} GiB free")
    lines.append(f"prepared texts: {facts['texts']}")
    lines.append(f"your work in the lessons: {facts['learner']}")
    lines.append(f"corpora: {describe_names()}")
    for name, version in facts["optional"].items():
        told = version or f"not installed (pip install {name})"
        lines.append(f"optional: {name}, for {_OPTIONAL[name]}: {told}")
    lines += [f"to mend: {finding}" for finding in facts["findings"]] or ["nothing to mend"]
    return "\n".join(lines)


def _version(package: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


# ---------------------------------------------------------------- findings: a cause and a cure


def _findings() -> Iterator[str]:
    for find in (_packages, _threads, _memory, _limits, _disk, _programs, _kernel, _encoding):
        yield from find()


def _packages():
    """Packages of another version than qllk was made for."""
    try:
        needed = map(Requirement, metadata.requires("qllk") or ())
    except metadata.PackageNotFoundError:
        return
    for one in needed:
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            found = _version(one.name)
            if found is None or not one.specifier.contains(found, prereleases=True):
                yield f"{one.name} is {found or 'missing'}; pip install '{one.name}{one.specifier}'"


def _threads():
    threads, cores = torch.get_num_threads(), _cores()
    if threads > math.ceil(cores):
        yield (
            f"torch computes in {threads} threads, but this process may use {cores:g} cores, which "
            f"is slower than {math.ceil(cores)} threads; set OMP_NUM_THREADS={math.ceil(cores)}"
        )
    if threads == 1 < cores and "OMP_NUM_THREADS" in os.environ:
        yield f"torch computes in one thread on {cores:g} cores; unset OMP_NUM_THREADS"


def _cores() -> float:
    """The cores that this process may use: its affinity, and a container's quota."""
    cores = len(psutil.Process().cpu_affinity()) if sys.platform != "darwin" else os.cpu_count()
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_CONTAINER / "cpu.max").read_text().split()
        cores = min(cores, int(quota) / int(period))
    return cores


def _memory():
    free = devices.free_bytes("cpu")
    if free < 2 * _GIB:
        yield (
            f"only {free / _GIB:.1f} GiB of memory are free; close other programs, or train small "
            "models, such as qllk-2-nano, with --batch 4"
        )


def _limits():
    """Limits of this process that torch does not expect."""
    with contextlib.suppress(ModuleNotFoundError):  # Windows has none
        import resource

        for limit, name, option, enough in (
            (resource.RLIMIT_AS, "memory addresses", "-v", 64 * _GIB),
            (resource.RLIMIT_FSIZE, "the size of files", "-f", _GIB),
            (resource.RLIMIT_NOFILE, "open files", "-n", 256),
        ):
            if 0 <= (most := resource.getrlimit(limit)[0]) < enough:
                yield f"{name} are limited to {most:,}; raise it with `ulimit {option}`"


def _disk():
    for folder, variable in ((cache_folder(), "QLLK_CACHE"), (learner_folder(), "QLLK_HOME")):
        if (free := shutil.disk_usage(folder).free) < _GIB // 4:
            yield (
                f"only {free / 2**20:.0f} MiB of disk are free in {folder}; make room, or set "
                f"{variable} to a folder on another disk"
            )


def _programs():
    if not any(map(shutil.which, [os.environ.get("CXX", "c++"), *_COMPILERS])):
        yield "no C++ compiler, so --compile does not work; install one, such as g++"
    if CLONE and not any(map(shutil.which, _BROWSERS)):
        yield "no Chromium, so `make test` leaves the pages in a browser out; install chromium"


def _kernel():
    """A kernel of this name that was installed by hand may belong to another Python."""
    try:
        program = Path(KernelSpecManager().get_kernel_spec("python3").argv[0])
    except RuntimeError:
        yield "this user has no home folder, in which Jupyter keeps its settings; set HOME to one"
        return
    if program.is_absolute() and program.parent.resolve() != Path(sys.executable).parent.resolve():
        yield (
            f"notebooks run in {program}, not in this Python, {sys.executable}; remove that kernel "
            "with `jupyter kernelspec remove python3`"
        )


def _encoding():
    if (encoding := sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        yield f"output is encoded as {encoding}, which lacks characters; set PYTHONUTF8=1"
