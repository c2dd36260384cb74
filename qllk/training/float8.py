"""Matrix products in eight-bit floating point: simulated on any machine, real with torchao."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import look_up
from ..model.layers import ResidualLinear

_LARGEST = 448.0  # 1.75 * 2^8


def round_e4m3(x: Tensor) -> Tensor:
    """Round to E4M3: four bits of exponent, three of mantissa, ties to even.

        step = 2^(max(floor(log2 |x|), -6) - 3)        y = step round(x / step)

    There are eight steps between two powers of two; below 2^-6 the step stays 2^-9. Values beyond
    448, the largest number of the format, are clamped to it.

    Shapes   any
    Paper    Micikevicius 2022, 2209.05433, table 1
    Twin     a cast to torch.float8_e4m3fn and back, bit for bit
    """
    _, exponent = torch.frexp(x)  # |x| lies in [2^(exponent - 1), 2^exponent)
    step = torch.ldexp(torch.ones_like(x), exponent.clamp(min=-5) - 4)
    return ((x / step).round() * step).clamp(-_LARGEST, _LARGEST)


def _row_scale(x):
    """The largest power of two by which a row can be multiplied without exceeding 448.

    Each row has its own scale. A scale shared by several rows would leak the size of later
    positions into earlier ones.

    Shapes   (…,D) -> (…,1)
    """
    largest = x.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    _, exponent = torch.frexp(_LARGEST / largest)
    return torch.ldexp(torch.ones_like(largest), exponent - 1)


class _FakeQuantize(torch.autograd.Function):
    """Scale each row, round it to E4M3 and scale it back; the gradient ignores the rounding.

    Shapes   (…,D) -> (…,D)
    Paper    Bengio 2013, 1308.3432, for this straight-through gradient
    """

    @staticmethod
    def forward(ctx, x):
        scale = _row_scale(x)
        return round_e4m3(x * scale) / scale

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class SimulatedLinear(nn.Linear):
    """A linear layer that computes what an eight-bit one would: rounded inputs and weights.

    Cost     slower than nn.Linear: it shows the loss of accuracy, not the gain in speed
    Twin     the forward pass of torchao's Float8Linear in its row-wise recipe
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_FakeQuantize.apply(x), _FakeQuantize.apply(self.weight), self.bias)


def _keep(model):
    return model


def _simulate(model):
    for module in model.modules():
        if _replaceable(module):
            module.__class__ = SimulatedLinear  # in place, which keeps weights, names and ties
    return model


def _use_hardware(model):
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise ValueError(
            "matmul='float8' needs torchao, which is not installed: pip install torchao"
        ) from None
    return convert_to_float8_training(
        model,
        config=Float8LinearConfig.from_recipe_name("rowwise"),
        # The hardware multiplies matrices whose sides are multiples of sixteen.
        module_filter_fn=lambda module, name: (
            _replaceable(module) and not any(width % 16 for width in module.weight.shape)
        ),
    )


def _replaceable(module):
    """Whether a module is a linear layer, but not a LinearHead.

    In a head, a small error would change every probability.
    """
    return type(module) in (nn.Linear, ResidualLinear)


_MATMULS = {"native": _keep, "float8": _use_hardware, "float8-simulated": _simulate}


def check(matmul: str, device: str, precision: str) -> None:
    """Refuse a kind of matrix product that does not work on this device in this precision.

    Raises   ValueError for an unknown name, or for "float8" without suitable hardware or precision
    """
    look_up(_MATMULS, matmul, "matmul")
    cuda = torch.device(device).type == "cuda" and torch.cuda.get_device_capability(device)
    if matmul == "float8" and (not cuda or cuda < (8, 9) or precision != "bfloat16"):
        raise ValueError(
            "matmul='float8' needs a CUDA device of compute capability 8.9 or higher and "
            f"precision='bfloat16', not {device} in {precision}; 'float8-simulated' runs anywhere"
        )


def convert(model: nn.Module, matmul: str, *, device: str, precision: str) -> nn.Module:
    """Switch the linear layers of a model, except its head, to another kind of matrix product.

    Raises   ValueError as `check` does, or when an optional package is missing
    """
    check(matmul, device, precision)
    return _MATMULS[matmul](model)
