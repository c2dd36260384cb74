"""What a model costs to run and to train, measured on the model itself."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..checks import check_positive
from ..model.attention import SoftmaxAttention
from ..model.families import build, count_parameters
from ..model.patching import PatchPath
from ..probes import measure
from ..probes.inside import state_bytes
from ..spec import Spec
from ..text import objectives
from . import optim

# ---------------------------------------------------------------- what a model costs

FAR = 2048  # tokens: after so many, all that starts up has settled


class Costs(NamedTuple):
    """What a model takes to run, for one row, and to train. A text of T tokens leaves a state of
    `state_bytes + T * state_bytes_per_token`, once its windows are full; encoders have none.
    """

    parameters: int
    flops_per_token: float  # of a forward pass; training takes three times as many
    state_bytes: int | None
    state_bytes_per_token: float | None
    training_bytes: int


def measure_costs(what: str | Spec, window: int, batch: int) -> Costs:
    """What a preset or a Spec costs for rows of `window` tokens, and for training on `batch` rows.

    Everything is measured on the model itself, on the meta device, where tensors have shapes and
    no memory. An encoder-decoder reads a source of as many tokens; counted are those it writes.

    Cost     no memory; up to three seconds for dozens of layers
    Raises   ValueError when window or batch is below one, or the window goes past the context
    """
    check_positive("costs", window=window, batch=batch)
    with torch.device("meta"), torch.no_grad():
        model = build(what)
        inputs = model.example_inputs(torch.zeros(1, window, dtype=torch.long))
        flops = measure.count_flops(lambda: model(*inputs)) / window
        state = _state_growth(model, inputs)
    return Costs(count_parameters(model), flops, *state, training_bytes(what, window, batch))


def training_bytes(what: str | Spec, window: int, batch: int) -> int:
    """The memory that a step of training takes, in float32 with AdamW.

        weights + gradients + moments + what the forward pass keeps for the backward pass

    It is measured on fake tensors: they claim to lie on the CPU, so that attention runs as there.
    The meta device would unfold it and keep its table. What the backward pass makes and drops at
    once is left out.

    Cost     no memory, and the time of one forward pass without its arithmetic
    """
    with FakeTensorMode(), torch.enable_grad():
        model = build(what)
        inputs = model.example_inputs(torch.zeros(batch, window, dtype=torch.long))
        kept = measure.saved_bytes(lambda: objectives.token_losses(model(*inputs), inputs[-1]))
        optimizer = optim.build_optimizer("adamw", model, lr=1.0, weight_decay=0.0)
        moments = [list(remembered.values()) for remembered in optim.init_state(optimizer)]
        return 2 * state_bytes(list(model.parameters())) + state_bytes(moments) + kept


def _state_growth(model, inputs) -> tuple[int, float] | tuple[None, None]:
    """What of a state is always there, and what each token adds, in bytes.

    From both halves of a text that goes on after all windows are full, as far as the context
    allows: what fills up in the first half is constant. Both end where patches end, if they can.
    """
    clock = _clock(model)
    half = max(FAR, _reach(model)) + clock
    half = min(half, (model.spec.context or 2 * half) // 2)
    half = half // clock * clock or half
    ids = torch.zeros(1, half, dtype=torch.long)
    state = model.final_state(*inputs[:-1], ids)
    if state is None:  # an encoder
        return None, None
    first, second = state_bytes(state), state_bytes(model.run(ids, state)[1])
    return 2 * first - second, (second - first) / half


def _reach(module) -> int:
    """After how many tokens every window inside is full; on patches a step takes R of them."""
    if isinstance(module, SoftmaxAttention):
        return (module.mask.window or 0) + module.mask.sinks
    inside = max(map(_reach, module.children()), default=0)
    return inside * module.size if isinstance(module, PatchPath) else inside


def _clock(module) -> int:
    """How many tokens there are from one end of all patches inside to the next."""
    inside = math.lcm(*map(_clock, module.children()))
    return inside * module.size if isinstance(module, PatchPath) else inside
