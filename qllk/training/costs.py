"""What a model costs to run and to train, measured on the model itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..checks import check_positive
from ..model.attention import SoftmaxAttention
from ..model.families import build, count_parameters, sketch
from ..model.patching import PatchPath
from ..probes import measure
from ..probes.inside import state_bytes
from ..spec import Spec
from ..text import objectives
from . import devices, optim

_SETTLED = 2048  # tokens by which any part of a state that fills up at the start is full
_MOST_IDS = 1 << 24  # of a row; the squares of larger numbers would overflow


class Costs(NamedTuple):
    """What a model costs to run, for one row, and to train.

    After T tokens the state has `state_bytes + T * state_bytes_per_token` bytes, once all windows
    are full. Encoders have no state.
    """

    parameters: int
    flops_per_token: float  # of a forward pass; training needs three times as many
    state_bytes: int | None
    state_bytes_per_token: float | None
    training_bytes: int


def measure_costs(what: str | Path | Spec, window: int, batch: int) -> Costs:
    """The costs of a preset or a Spec: of rows of `window` tokens, and of training on `batch` rows.

    Measured on the model itself, on the meta device, where tensors have shapes but no memory. An
    encoder-decoder reads a source of the same length; the FLOPs are per token written.

    Cost     no memory; up to three seconds for dozens of layers
    Raises   ValueError when window or batch is below one or larger than any machine's, or the
             window exceeds the context
    """
    check_positive("costs", window=window, batch=batch)
    if window > _MOST_IDS or window * batch > 64 * _MOST_IDS:
        raise ValueError(
            f"costs: a step on {batch} rows of {window} ids is larger than those that are counted: "
            f"{_MOST_IDS:,} ids in a row, and 64 such rows"
        )
    model = sketch(what)
    with torch.device("meta"), torch.no_grad():
        inputs = model.example_inputs(torch.zeros(1, window, dtype=torch.long))
        flops = measure.count_flops(lambda: model(*inputs)) / window
        state = _state_growth(model, inputs)
    return Costs(count_parameters(model), flops, *state, training_bytes(what, window, batch))


def training_bytes(what: str | Path | Spec, window: int, batch: int) -> int:
    """The memory of a training step in bytes, in float32 with AdamW.

        weights + gradients + moments + activations saved for the backward pass

    Measured on fake tensors, which pretend to be on the CPU, so that attention is fused; the
    meta device would save the full matrix of scores. Temporaries of the backward pass are left
    out, and so are the gradients of tables, which are as large as the rows that a step reads.

    Cost     no memory, and the time of one forward pass without its arithmetic
    """
    with FakeTensorMode(), torch.enable_grad():
        model = build(what)
        inputs = model.example_inputs(torch.zeros(batch, window, dtype=torch.long))
        kept = measure.saved_bytes(lambda: objectives.token_losses(model(*inputs), inputs[-1]))
        optimizer = optim.build_optimizer("adamw", model, lr=1.0, weight_decay=0.0)
        moments = [list(state.values()) for state in optim.init_state(optimizer)]
        weights = state_bytes(list(model.parameters()))
        return weights + optim.gradient_bytes(model) + state_bytes(moments) + kept


def check_batch(spec: Spec | None, window: int, rows: int, device: str, share: float = 1.0) -> None:
    """Refuse a step on `rows` rows of `window` ids that needs more memory than is free.

    An operating system may end a process that takes too much, so this is estimated before. A step
    takes `share` of the memory that it would take in float32. Of a module without a Spec, only the
    ids are known.

    Cost     that of `training_bytes`, for a step that could be large; else nothing
    Raises   ValueError with both sizes
    """
    free = devices.free_bytes(device)
    needed = 64 * rows * window
    if spec is not None and needed < free and _most_activations(spec, window, rows) > free / 2:
        needed = share * training_bytes(spec, window, rows)
    if needed > free:
        raise ValueError(
            f"a step on {rows:,} rows of {window:,} ids takes about {format_bytes(needed)}, but "
            f"{device} has {format_bytes(free)} of memory free; use a smaller batch or window, or "
            "more micro-batches (accumulate)"
        )


def _most_activations(spec: Spec, window: int, rows: int) -> int:
    """More bytes than any model of this size saves for the backward pass."""
    numbers = 8 * spec.vocab_size + spec.depth * (64 * spec.d_model + 8 * window)
    return 4 * numbers * rows * window


def _state_growth(model, inputs) -> tuple[int, float] | tuple[None, None]:
    """The constant part of a state, and what each token adds to it, in bytes.

    Two halves of a text are compared, both long enough to fill every window, as far as the context
    allows: what only the first half adds is constant. Both end at the end of a patch if possible.
    """
    period = _patch_period(model)
    half = max(_SETTLED, _reach(model)) + period
    half = min(half, (model.spec.context or 2 * half) // 2)
    half = half // period * period or half
    ids = torch.zeros(1, half, dtype=torch.long)
    state = model.final_state(*inputs[:-1], ids)
    if state is None:  # an encoder
        return None, None
    first, second = state_bytes(state), state_bytes(model.run(ids, state)[1])
    return 2 * first - second, (second - first) / half


def _reach(module) -> int:
    """The tokens after which every window is full; a step of a patched stack takes R tokens."""
    if isinstance(module, SoftmaxAttention):
        return (module.mask.window or 0) + module.mask.sinks
    inside = max(map(_reach, module.children()), default=0)
    return inside * module.size if isinstance(module, PatchPath) else inside


def _patch_period(module) -> int:
    """The tokens from one position where all nested patches end to the next."""
    inside = math.lcm(*map(_patch_period, module.children()))
    return inside * module.size if isinstance(module, PatchPath) else inside


# ---------------------------------------------------------------- as text


def format_costs(rows: dict[str, dict], batch: int) -> str:
    """A table with one line per model. Each row has the fields of `Costs` and the window."""
    head = ("model", "parameters", "FLOPs/token", "state", "state/token", "training", "window")
    lines = [head, *(_format_row(name, row) for name, row in rows.items())]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    text = [
        "  ".join([f"{name:{first}}", *map(str.rjust, cells, others)]) for name, *cells in lines
    ]
    return "\n".join(text) + (
        "\n\nFLOPs are those of a forward pass over one window. They include the masked half of\n"
        "attention and leave out elementwise work; training needs three times as many.\n"
        f"Training memory is for float32 and AdamW; a step reads as much text as {batch} of the\n"
        "longest windows."
    )


def format_bytes(number: float | None) -> str:
    """A number of bytes in its largest unit, such as 2.2 MiB; a dash for None."""
    return _format_size(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _format_row(name, row):
    sizes = ("state_bytes", "state_bytes_per_token", "training_bytes")
    return (
        name,
        f"{row['parameters']:,}",
        _format_size(row["flops_per_token"], 1000, ("", "K", "M", "G", "T")),
        *(format_bytes(row[size]) for size in sizes),
        f"{row['window']:,}",
    )


def _format_size(number, step, units):
    """The number in the largest unit that does not exceed it; a dash for None."""
    if number is None:
        return "-"
    power = sum(number >= step**p for p in range(1, len(units)))
    return f"{number / step**power:.{1 if power else 0}f} {units[power]}"
