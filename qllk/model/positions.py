"""How a model knows where a byte stands. Three verbs, and a mixer never asks which kind it has.

`add(x, t0)` acts once, where bytes are embedded; `turn(x, t0)` acts on queries and keys, *before*
they are cached; `bias(heads, T, N)` is added to the scores. `t0` is the number of steps that came
before x.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ..checks import check_positive


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

    def bias(self, heads, T, N):
        """For T queries at the last of N places.  Shapes   -> (H,T,N), or none for zeros"""
        return None


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
        _even(d_model, "sinusoidal positions need an even d_model")

    def add(self, x, t0):
        angle = _angles(t0, x.shape[1], x.shape[2], x.device)
        return x + torch.cat((angle.sin(), angle.cos()), dim=-1).to(x.dtype)


class Rotary(NoPositions):
    """Turn pairs of channels by an angle that grows with position, so that scores depend on
    distance alone.  RoFormer, Su 2021, 2104.09864, equation 34.

    Options  scaling   turn so many times slower, to fit a longer text into the angles of a
                       shorter one.  Chen 2023, 2306.15595
    """

    def __init__(self, d_model, context=None, *, scaling=1.0):
        super().__init__(d_model)
        if not scaling > 0:
            raise ValueError(f"the scaling of rotary positions must be above 0, got {scaling}")
        self.scaling = scaling

    def turn(self, x, t0):
        _even(x.shape[-1], "rotary positions need an even width per head")
        angle = _angles(t0, x.shape[2], x.shape[3], x.device) / self.scaling
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Relative(NoPositions):
    """A trained number for each head and each distance between query and key, added to the score.

    The nearer half of the buckets hold one distance each, the others ever more of them, on a log
    scale; whatever lies `distance` steps away or farther shares the last.

    Options  heads, those of the mixers; buckets; distance in steps
    Paper    T5, Raffel 2019, 1910.10683, 2.1
    Raises   ValueError when the mixers have another number of heads
    """

    def __init__(self, d_model, context=None, *, heads, buckets=32, distance=128):
        super().__init__(d_model)
        check_positive("relative positions", heads=heads, buckets=buckets, distance=distance)
        if buckets < 4 or distance <= buckets:
            raise ValueError(
                f"relative positions need 4 buckets or more and a distance beyond them, got "
                f"buckets={buckets}, distance={distance}"
            )
        self.distance, self.table = distance, nn.Embedding(buckets, heads)

    def bias(self, heads, T, N):
        buckets, known = self.table.weight.shape
        if heads != known:
            raise ValueError(f"relative positions of heads={known} meet a mixer of heads={heads}")
        places = torch.arange(N, device=self.table.weight.device)
        ahead = places - places[N - T :, None]  # (T,N): how far the key stands after the query
        return self.table(self.bucket(ahead, buckets)).permute(2, 0, 1)

    def bucket(self, ahead, buckets):
        """Which row of the table: one for each distance back."""
        return _log_bucket((-ahead).clamp(min=0), buckets, self.distance)


class BidirectionalRelative(Relative):
    """The same where queries see both ways: half of the buckets for each."""

    def bucket(self, ahead, buckets):
        half = buckets // 2
        return _log_bucket(ahead.abs(), half, self.distance) + half * (ahead > 0)


def _log_bucket(steps, buckets, distance):
    """0, 1, 2 … up to half of the buckets, then on a log scale up to the last at `distance`."""
    near = buckets // 2
    octaves = (steps.float().clamp(min=1) / near).log() / math.log(distance / near)
    far = near + (octaves * (buckets - near)).long()
    return torch.where(steps < near, steps, far.clamp(max=buckets - 1))


def _angles(t0, T, width, device):
    """Position times frequency, in float64 so that far positions stay exact: (T, width/2)."""
    wide = _widest_float(device)
    frequency = 10_000.0 ** -(torch.arange(0, width, 2, device=device, dtype=wide) / width)
    return torch.arange(t0, t0 + T, device=device, dtype=wide)[:, None] * frequency


def _widest_float(device):
    """float64, except on MPS, which has none."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def _even(width, message):
    if width % 2:
        raise ValueError(f"{message}, got {width}")


POSITIONS = {
    "none": NoPositions,
    "learned": Learned,
    "sinusoidal": Sinusoidal,
    "rotary": Rotary,
    "relative": Relative,
}
# The same for encoders, whose queries see both ways.
BIDIRECTIONAL_POSITIONS = POSITIONS | {"relative": BidirectionalRelative}
