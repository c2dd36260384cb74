"""Matrix products in eight-bit floating point: simulated on any machine, real through torchao."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..checks import look_up
from ..model.layers import ResidualLinear

_LARGEST = 448.0  # 1.75 * 2^8


def round_e4m3(x):
    """The nearest number with four bits of exponent and three of mantissa; halves go to even.

        step = 2^(max(floor(log2 |x|), -6) - 3)        y = step round(x / step)

    Eight steps lie between two powers of two. From 2^-6 down to zero the step stays 2^-9. Beyond
    448 there is nothing, so what lies further out becomes that.

    Shapes   any
    Paper    Micikevicius 2022, 2209.05433, table 1
    Twin     a cast to torch.float8_e4m3fn and back, bit for bit
    """
    _, exponent = torch.frexp(x)  # |x| lies in [2^(exponent - 1), 2^exponent)
    step = torch.ldexp(torch.ones_like(x), exponent.clamp(min=-5) - 4)
    return ((x / step).round() * step).clamp(-_LARGEST, _LARGEST)


def _scale_of(x):
    """The largest power of two that takes every number of a row to within 448.

    A row has a scale of its own: one for all rows would let each see how large the others are,
    the later positions included.

    Shapes   (…,D) -> (…,1)
    """
    largest = x.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    _, exponent = torch.frexp(_LARGEST / largest)
    return torch.ldexp(torch.ones_like(largest), exponent - 1)


class _FakeQuantise(torch.autograd.Function):
    """To E4M3 and back, by row; the gradient goes straight through, as if nothing was rounded.

    Shapes   (…,D) -> (…,D)
    Paper    Bengio 2013, 1308.3432, for the gradient
    """

    @staticmethod
    def forward(ctx, x):
        scale = _scale_of(x)
        return round_e4m3(x * scale) / scale

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class SimulatedLinear(nn.Linear):
    """A linear layer with the numbers of an eight-bit one: inputs and weights rounded, sums exact.

    Cost     slower than without; what it shows is the loss of accuracy, not the gain in speed
    Twin     torchao's Float8Linear in its row-wise recipe, forward
    """

    def forward(self, x):
        return F.linear(_FakeQuantise.apply(x), _FakeQuantise.apply(self.weight), self.bias)


def native(model):
    return model


def _simulated(model):
    for module in model.modules():
        if _replaceable(module):
            module.__class__ = SimulatedLinear  # it stays itself: weights, names and ties
    return model


def _hardware(model):
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise ValueError(
            "matmul='float8' needs torchao, which is not installed: pip install -e '.[extra]'"
        ) from None
    return convert_to_float8_training(
        model,
        config=Float8LinearConfig.from_recipe_name("rowwise"),
        # The units that multiply take widths in sixteens.
        module_filter_fn=lambda module, name: (
            _replaceable(module) and not any(width % 16 for width in module.weight.shape)
        ),
    )


def _replaceable(module):
    """Linear layers, except heads, where a small error would change every probability."""
    return type(module) in (nn.Linear, ResidualLinear)


_MATMULS = {"native": native, "float8": _hardware, "float8-simulated": _simulated}


def check(matmul: str, device: str, precision: str):
    """Whether this way to multiply works there.

    Raises   ValueError for an unknown name, or when the device or the precision is another
    """
    look_up(_MATMULS, matmul, "matmul")
    cuda = torch.device(device).type == "cuda" and torch.cuda.get_device_capability(device)
    if matmul == "float8" and (not cuda or cuda < (8, 9) or precision != "bfloat16"):
        raise ValueError(
            "matmul='float8' needs a CUDA device of compute capability 8.9 or more and "
            f"precision='bfloat16', not {device} in {precision}; 'float8-simulated' runs anywhere"
        )


def convert(model, matmul: str, *, device: str, precision: str):
    """The model, with the linear layers of its blocks multiplying in the way that `matmul` names.

    Raises   ValueError as `check`, or when an optional package is lacking
    """
    check(matmul, device, precision)
    return _MATMULS[matmul](model)
