"""How a model knows where a byte stands. Two verbs, and a mixer never asks which kind it has.

`add(x, t0)` acts once, where bytes are embedded; `turn(x, t0)` acts on queries and keys, *before*
they are cached. `t0` is the number of steps that came before x.
"""

from __future__ import annotations

import torch
from torch import nn


class NoPositions(nn.Module):
    """Nothing added, nothing turned. Recurrences and convolutions know the order by themselves."""

    def __init__(self, d_model, context=None):
        super().__init__()

    def add(self, x, t0):
        """Shapes   x (B,T,D) -> (B,T,D)"""
        return x

    def turn(self, x, t0):
        """Shapes   x (B,H,T,K) -> (B,H,T,K)"""
        return x


class Learned(NoPositions):
    """One trained vector for each position.  GPT-2, Radford 2019.

    Raises   ValueError when the context is missing, or the input goes past it
    """

    def __init__(self, d_model, context=None):
        super().__init__(d_model)
        if context is None:
            raise ValueError("learned positions need a context length; set Spec.context")
        self.table = nn.Embedding(context, d_model)

    def add(self, x, t0):
        end, context = t0 + x.shape[1], self.table.num_embeddings
        if end > context:
            raise ValueError(
                f"input reaches position {end}, but the learned positions end at {context}; "
                "shorten the input or raise Spec.context"
            )
        return x + self.table(torch.arange(t0, end, device=x.device))


class Sinusoidal(NoPositions):
    """Fixed waves, from one radian a step to one in 10,000 steps.  Vaswani 2017, 1706.03762, 3.5.

    The first D/2 channels hold sines and the rest cosines; any length is allowed.
    """

    def __init__(self, d_model, context=None):
        super().__init__(d_model)
        even(d_model, "sinusoidal positions need an even d_model")

    def add(self, x, t0):
        angle = angles(t0, x.shape[1], x.shape[2], x.device)
        return x + torch.cat((angle.sin(), angle.cos()), dim=-1).to(x.dtype)


class Rotary(NoPositions):
    """Turn pairs of channels by an angle that grows with position, so that scores depend on
    distance alone.  RoFormer, Su 2021, 2104.09864, equation 34.
    """

    def turn(self, x, t0):
        even(x.shape[-1], "rotary positions need an even width per head")
        angle = angles(t0, x.shape[2], x.shape[3], x.device)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def angles(t0, T, width, device):
    """Position times frequency, in float64 so that far positions stay exact: (T, width/2)."""
    frequency = 10_000.0 ** -(torch.arange(0, width, 2, device=device, dtype=WIDE(device)) / width)
    return torch.arange(t0, t0 + T, device=device, dtype=WIDE(device))[:, None] * frequency


def WIDE(device):
    """float64, except on MPS, which has none."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def even(width, message):
    if width % 2:
        raise ValueError(f"{message}, got {width}")


POSITIONS = {"none": NoPositions, "learned": Learned, "sinusoidal": Sinusoidal, "rotary": Rotary}
