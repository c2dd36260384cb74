"""Where a run computes: its device and precision, and everything that depends on the two."""

from __future__ import annotations

import copy

import torch
from torch import nn

from .. import probes
from ..model.blocks import Stack
from ..model.layers import Dropout
from ..text.objectives import Batch, count_targets, token_losses
from . import devices, optim
from .recipe import Recipe


class Place:
    """A device and a precision, with what a training step needs there.

    Attributes  device, precision
                forward    the model, compiled if the recipe asks for that
                masks      the generator that draws dropout masks
                scaler     the loss scaler, enabled only in float16
    """

    def __init__(self, model: nn.Module, device: str, precision: str, recipe: Recipe):
        self.device, self.precision = device, precision
        self.forward = torch.compile(model) if recipe.compile else model
        self.masks = torch.Generator(device)
        kind = torch.device(device).type
        self.scaler = torch.amp.GradScaler(kind, enabled=precision == "float16")
        for module in model.modules():
            if isinstance(module, Dropout):
                module.generator = self.masks
            elif isinstance(module, Stack):
                module.recompute = recipe.recompute

    def autocast(self):
        """The context in which forward passes compute in this precision."""
        return devices.autocast(self.device, self.precision)


def move_to(
    device: str, precision: str, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe
) -> Place:
    """Move the weights and the optimizer's state in place, and return the new place.

    Raises   RuntimeError when the device fails, for example out of memory; some tensors may then
             have moved already
    """
    model.to(device)
    for state in optimizer.state.values():
        for name, value in state.items():
            # Adam's step counter moves too: the fused update needs it next to the parameters.
            state[name] = value.to(device)
    return Place(model, device, precision, recipe)


def check_memory(model: nn.Module, device: str) -> None:
    """Refuse a model whose weights and gradients need more memory than is free.

    Asking for more memory than a machine has can end the whole process, so this is checked on the
    meta device, before the model is built. `costs.check_batch` estimates the rest.

    Raises   ValueError when it is too large, or its weights were made in inference mode
    """
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError(
            "the weights of this model were made in inference mode, so they cannot be trained; "
            "build the model outside of torch.inference_mode"
        )
    planned = [p for p in model.parameters() if p.is_meta]  # those of a module exist already
    needed = probes.state_bytes(planned) + optim.gradient_bytes(model)
    if needed > (free := devices.free_bytes(device)):
        raise ValueError(
            f"the weights and gradients of this model take {needed / 2**30:.1f} GiB, but {device} "
            f"has {free / 2**30:.1f} GiB free; `python -m qllk presets` lists smaller models"
        )


def check_parity(model: nn.Module, batch: Batch, device: str, precision: str) -> None:
    """Take one trial step on a copy of the model and compare its loss with float32 on the CPU.

    Raises   ValueError when the losses differ by more than `devices.PARITY_NATS` allows, or a
             gradient is not finite
    """
    expected, _ = _trial_step(model, batch, "cpu", "float32")
    got, finite = _trial_step(model, batch, device, precision)
    allowed = devices.PARITY_NATS[precision] * max(1.0, abs(expected))
    if not finite or not abs(got - expected) <= allowed:
        raise ValueError(
            f"a trial step on {device} in {precision} gave a loss of {got:.4f} nats, but float32 "
            f"on the CPU gives {expected:.4f} (allowed difference: {allowed:.4f})"
        )


def _trial_step(model: nn.Module, batch: Batch, device: str, precision: str) -> tuple[float, bool]:
    """The loss of one step on a copy of the model, and whether all its gradients are finite."""
    twin, batch = copy.deepcopy(model).to(device).eval(), batch.to(device)
    with devices.autocast(device, precision):
        logits = twin(*batch.inputs)
    loss = token_losses(logits, batch.targets).sum() / count_targets(batch.targets)
    loss.backward()
    finite = all(optim.is_finite(p.grad) for p in twin.parameters() if p.grad is not None)
    return loss.item(), finite
