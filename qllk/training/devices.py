"""What this machine can compute on, and in which precisions, found by trying.

A precision is how the forward and backward pass compute; weights and optimizer stay float32.

    float32     everywhere
    bfloat16    through autocast, where a probe step runs and gives bfloat16
    float16     through autocast with a loss scaler, on CUDA
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import time
from functools import cache
from typing import NamedTuple

import psutil
import torch

from ..checks import look_up

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# How far a loss of a few nats may move when only the precision or the device changes.
PARITY_NATS = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}


class _Device(NamedTuple):
    """One place to compute: torch's name for it, a person's name for it, what works there."""

    name: str
    label: str
    precisions: tuple[str, ...]


@cache
def available() -> tuple[_Device, ...]:
    """Every device on which a probe step ran, fastest kind first, with the precisions that did."""
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    found = []
    for name in [*names, "cpu"]:
        precisions = tuple(p for p in PRECISIONS if _unavailable_reason(name, p) is None)
        if precisions:
            found.append(_Device(name, _label(name), precisions))
    return tuple(found)


def _label(name: str) -> str:
    if name.startswith("cuda"):
        return torch.cuda.get_device_name(name)
    if name == "mps":
        return "Apple GPU"
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"


def processor() -> str:
    """The processor's own name, where the system tells it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def full_name(name: str) -> str:
    """ "cuda" means the first of them."""
    return "cuda:0" if name == "cuda" else name


def memory_bytes(name: str) -> int:
    """How much memory a device has in all."""
    if name.startswith("cuda"):
        return torch.cuda.get_device_properties(name).total_memory
    return psutil.virtual_memory().total  # an MPS device shares it


def require(name: str, precision: str) -> str:
    """The device's full name, if it can train in `precision`.

    Raises   ValueError saying what this machine offers instead
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    offers = {device.name: device.precisions for device in available()}
    name = full_name(name)
    if name not in offers:
        raise ValueError(f"no device {name!r} here; this machine has {', '.join(offers)}")
    if precision not in offers[name]:
        raise ValueError(
            f"{name} cannot train in {precision} ({_unavailable_reason(name, precision)}); "
            f"it offers {', '.join(offers[name])}"
        )
    return name


def _unavailable_reason(name: str, precision: str) -> str | None:
    """None if one small training step gives what was asked for, else the reason."""
    if precision == "float16" and not name.startswith("cuda"):
        return "float16 with its loss scaler is offered on CUDA only"
    if precision != "float32" and name == "mps":
        return "autocast on MPS is not reliable enough to train with"
    try:
        layer = torch.nn.Linear(8, 8).to(name)
        with autocast(name, precision):
            y = layer(torch.ones(2, 8, device=name))
        y.float().square().mean().backward()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    if y.dtype != PRECISIONS[precision]:
        return f"asked for {precision}, torch ran {y.dtype}"
    return None if layer.weight.grad.isfinite().all() else "its gradients are not finite"


@cache
def fastest_precision(name: str) -> str:
    """The precision in which a matrix product, forward and backward, takes least time on `name`.

    On processors with bfloat16 instructions that is bfloat16, by a factor of two to four; on the
    others it is float32, since there bfloat16 is emulated.
    """
    offers = {device.name: device.precisions for device in available()}
    return min(look_up(offers, name, "device"), key=lambda precision: _seconds(name, precision))


def _seconds(name, precision, repeats=5):
    """The best of a few timings, the first being a warm-up."""
    layer = torch.nn.Linear(256, 1024).to(name)
    x = torch.ones(4096, 256, device=name)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        with autocast(name, precision):
            y = layer(x)
        y.sum().backward()
        synchronize(name)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def autocast(name: str, precision: str):
    """The context in which a forward pass on `name` computes in `precision`."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(name).type, PRECISIONS[precision])


@cache
def retain_freed_memory() -> bool:
    """Let this process keep the memory that a training step frees, for the next step; if it can.

    By default glibc gives large blocks back at once, and each step pays for having them mapped and
    zeroed again. The price is a process that stays as large as its largest step. Elsewhere than on
    Linux with glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    largest = 32 << 20  # what glibc allows on 64 bits
    return bool(mallopt(mmap_threshold, largest) and mallopt(trim_threshold, (1 << 31) - 1))


def synchronize(name: str) -> None:
    """Wait until the device has done what it was told, so that a clock tells the truth."""
    kind = torch.device(name).type
    if kind == "cuda":
        torch.cuda.synchronize(name)
    elif kind == "mps":
        torch.mps.synchronize()


def describe_machine() -> dict:
    """Where a measurement was made."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
    }
