"""The devices of this machine and the precisions they train in, found by trying each one.

The precision is that of the forward and backward pass; weights and optimizer state stay in float32.

    float32     on every device
    bfloat16    with autocast, where a trial step runs and really computes in bfloat16
    float16     with autocast and a loss scaler, on CUDA
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch.nn.functional import linear

from ..checks import look_up

_CONTAINER = Path("/sys/fs/cgroup")
_INTERPRETER_BYTES = 1 << 29  # of a process that has imported torch, which no step can use
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The largest difference, in nats, of a loss that is computed elsewhere or in another precision.
PARITY_NATS = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}


class _Device(NamedTuple):
    """A device that can train."""

    name: str  # torch's, "cuda:0"
    label: str  # the hardware's
    precisions: tuple[str, ...]


@contextlib.contextmanager
def own_conditions() -> Iterator[None]:
    """torch's defaults within a context, whatever this process has set before.

    Gradients are on, new tensors are float32 on the CPU, and nothing is autocast. The default dtype
    belongs to the whole process: other threads see float32 in the meantime.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda", "mps"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if device.type != "cpu":  # only then, because it slows every operation down
            stack.enter_context(torch.device("cpu"))
        yield


def available() -> tuple[_Device, ...]:
    """All devices that can train now, in the order CUDA, MPS, CPU."""
    found = []
    for name in _listed():
        precisions = tuple(p for p in PRECISIONS if _unavailable_reason(name, p) is None)
        if precisions:
            found.append(_Device(name, _label(name), precisions))
    return tuple(found)


def _listed() -> list[str]:
    """The devices that torch lists, whether they work or not."""
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [*names, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def _label(name: str) -> str:
    if name.startswith("cuda"):
        return torch.cuda.get_device_name(name)
    if name == "mps":
        return "Apple GPU"
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


@cache
def _processor() -> str:
    """The model of the processor, or its architecture if the system does not name the model."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def full_name(name: str) -> str:
    """The name with its index: "cuda" is "cuda:0"."""
    return "cuda:0" if name == "cuda" else name


def free_bytes(name: str) -> int:
    """The memory of a device that this process can still take, or has taken and can use again.

    That of the machine, and less where a container or the process itself is limited.
    """
    if name.startswith("cuda"):
        taken = torch.cuda.memory_reserved(name) - torch.cuda.memory_allocated(name)
        return torch.cuda.mem_get_info(name)[0] + taken
    process = psutil.Process()
    used, free = process.memory_info(), [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError, LookupError):  # no container, or no limit
        limit = int((_CONTAINER / "memory.max").read_text())
        stat = (_CONTAINER / "memory.stat").read_text().split()
        free.append(limit - int(stat[stat.index("anon") + 1]))
    with contextlib.suppress(AttributeError, psutil.Error):  # Linux only
        limit = process.rlimit(psutil.RLIMIT_AS)[0]
        free += [limit - used.vms] if limit > 0 else []
    return max(0, min(free)) + max(0, used.rss - _INTERPRETER_BYTES)


def require(name: str, precision: str) -> str:
    """Return the full name of the device if it can train in `precision`.

    Raises   ValueError listing the devices or the precisions that this machine offers
    """
    look_up(PRECISIONS, precision, "precision")
    device = _find(name)
    if precision not in device.precisions:
        raise ValueError(
            f"{device.name} cannot train in {precision} "
            f"({_unavailable_reason(device.name, precision)}); "
            f"it offers {', '.join(device.precisions)}"
        )
    return device.name


def check_compiler(name: str) -> None:
    """Check that torch.compile works on a device, by compiling a small function.

    Raises   ValueError when it does not, as without a C++ compiler, which the CPU needs
    """
    try:
        torch.compile(lambda x: x + 1)(torch.ones(1, device=name))
    except Exception as error:  # torch's own, of several kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"torch.compile does not work on {name!r} here: {reason} Install what it needs, on the "
            "CPU a C++ compiler, or train without compile"
        ) from None


def _find(name: str) -> _Device:
    found = {device.name: device for device in available()}
    if (full := full_name(name)) not in found:
        here = f"this machine has {', '.join(found) or 'none that works'}"
        if full in _listed():
            reason = _unavailable_reason(full, "float32")
            raise ValueError(f"a trial step on {full} fails: {reason}; {here}")
        raise ValueError(f"no device {full!r} here; {here}")
    return found[full]


@own_conditions()
def _unavailable_reason(name: str, precision: str) -> str | None:
    """Why a small training step does not work, or None if it does."""
    if precision == "float16" and not name.startswith("cuda"):
        return "float16 needs a loss scaler, which is offered on CUDA only"
    if precision != "float32" and name == "mps":
        return "autocast on MPS is not reliable enough to train with"
    try:
        weight = torch.ones(8, 8, device=name, requires_grad=True)
        with autocast(name, precision):
            y = linear(torch.ones(2, 8, device=name), weight)
        y.float().square().mean().backward()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    if y.dtype != PRECISIONS[precision]:
        return f"asked for {precision}, torch ran {y.dtype}"
    return None if weight.grad.isfinite().all() else "its gradients are not finite"


def fastest_precision(name: str) -> str:
    """The precision with the fastest matrix products, forward and backward, on a device.

    On processors with bfloat16 instructions this is bfloat16, two to four times as fast as
    float32. On others it is float32, because there bfloat16 is emulated.

    Raises   ValueError when there is no such device
    """
    device = _find(name)
    return min(device.precisions, key=lambda precision: _seconds(device.name, precision))


@cache
@own_conditions()
def _seconds(name, precision, repeats=5):
    """The best of several timings, without the first, which is a warm-up."""
    weight = torch.ones(1024, 256, device=name, requires_grad=True)
    x = torch.ones(4096, 256, device=name)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        with autocast(name, precision):
            y = linear(x, weight)
        y.sum().backward()
        synchronize(name)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def autocast(name: str, precision: str) -> contextlib.AbstractContextManager:
    """The context in which forward passes on a device compute in `precision`."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(name).type, PRECISIONS[precision])


@cache
def retain_freed_memory() -> bool:
    """Keep the memory that a training step frees for the next step. Returns whether this works.

    By default glibc returns large blocks to the system at once, and each step pays for mapping and
    zeroing them again. In exchange the process stays as large as its largest step. It works on
    Linux with glibc only; elsewhere nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    largest = 32 << 20  # what glibc allows on 64 bits
    return bool(mallopt(mmap_threshold, largest) and mallopt(trim_threshold, (1 << 31) - 1))


def synchronize(name: str) -> None:
    """Wait until all work queued on the device is done, so that a clock measures it."""
    kind = torch.device(name).type
    if kind == "cuda":
        torch.cuda.synchronize(name)
    elif kind == "mps":
        torch.mps.synchronize()


def describe_machine() -> dict[str, str | int | None]:
    """The machine and the versions that a measurement was made with."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
    }
