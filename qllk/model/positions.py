"""Position encodings. They share one interface, so a mixer need not know which one is used.

`add(x, t0)` acts once, on the embedded ids; `rotate(x, t0)` acts on queries and keys, *before* they
are cached; `bias(heads, T, N)` is added to the attention scores. `t0` is the number of steps that
came before x. All are built as `cls(d_model, context, **options)`, where `context` is the longest
input, and only `Learned` needs it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..checks import check_positive


class NoPositions(nn.Module):
    """No encoding: recurrences and convolutions depend on the order by themselves."""

    def __init__(self, d_model: int, context: int | None = None):
        super().__init__()

    def add(self, x: Tensor, t0: int) -> Tensor:
        """Shapes   x (B,T,D) -> (B,T,D)"""
        return x

    def rotate(self, x: Tensor, t0: int) -> Tensor:
        """Shapes   x (B,H,T,K) -> (B,H,T,K)"""
        return x

    def bias(self, heads: int, T: int, N: int) -> Tensor | None:
        """For queries at the last T of N positions.  Shapes   -> (H,T,N), or None for zeros"""
        return None


class Learned(NoPositions):
    """One trained vector for each position.  GPT-2, Radford 2019.

    Raises   ValueError when the context is missing, or the input is longer
    """

    def __init__(self, d_model: int, context: int | None = None):
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
    """Fixed waves, from 1 radian per step to 1/10,000 radian.  Vaswani 2017, 1706.03762, 3.5.

    The first D/2 channels are sines and the rest cosines; inputs may have any length.
    """

    def __init__(self, d_model: int, context: int | None = None):
        super().__init__(d_model)
        _check_even(d_model, "sinusoidal positions need an even d_model")

    def add(self, x, t0):
        angle = _angles(t0, x.shape[1], x.shape[2], x.device)
        return x + torch.cat((angle.sin(), angle.cos()), dim=-1).to(x.dtype)


class Rotary(NoPositions):
    """Rotate pairs of channels by an angle that grows with position, so that scores depend only on
    distances.  RoFormer, Su 2021, 2104.09864, equation 34.

    Options  scaling   divides all angles, to fit a longer text into the range of angles of a
                       shorter one.  Chen 2023, 2306.15595
    """

    def __init__(self, d_model: int, context: int | None = None, *, scaling: float = 1.0):
        super().__init__(d_model)
        if not scaling > 0:
            raise ValueError(f"the scaling of rotary positions must be above 0, got {scaling}")
        self.scaling = scaling

    def rotate(self, x, t0):
        _check_even(x.shape[-1], "rotary positions need an even width per head")
        angle = _angles(t0, x.shape[2], x.shape[3], x.device) / self.scaling
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Relative(NoPositions):
    """A trained bias for each head and each distance between query and key, added to the score.

    The first half of the buckets are for one distance each: 0, 1, 2 …; the others cover ranges that
    grow on a log scale. All distances of `distance` steps or more share the last bucket.

    Options  heads      as many as the mixers have
             buckets    number of trained values per head
             distance   in steps, from which on all distances are treated alike
    Paper    T5, Raffel 2019, 1910.10683, 2.1
    Raises   ValueError when the mixers have a different number of heads
    """

    def __init__(
        self,
        d_model: int,
        context: int | None = None,
        *,
        heads: int,
        buckets: int = 32,
        distance: int = 128,
    ):
        super().__init__(d_model)
        check_positive("relative positions", heads=heads, buckets=buckets, distance=distance)
        if buckets < 4 or distance <= buckets:
            raise ValueError(
                "relative positions need at least 4 buckets and a distance above their number, "
                f"got buckets={buckets}, distance={distance}"
            )
        self.distance, self.table = distance, nn.Embedding(buckets, heads)

    def bias(self, heads, T, N):
        buckets, own_heads = self.table.weight.shape
        if heads != own_heads:
            raise ValueError(
                f"relative positions and mixers must have the same number of heads, got "
                f"heads={own_heads} for the positions and heads={heads} for a mixer"
            )
        positions = torch.arange(N, device=self.table.weight.device)
        ahead = positions - positions[N - T :, None]  # (T,N): steps from the query to the key
        return self.table(self.bucket(ahead, buckets)).permute(2, 0, 1)

    def bucket(self, ahead: Tensor, buckets: int) -> Tensor:
        """The row of the table for each distance; what lies ahead counts as distance 0."""
        return _log_bucket((-ahead).clamp(min=0), buckets, self.distance)


class BidirectionalRelative(Relative):
    """Relative positions for encoders: half of the buckets for keys before, half for keys after."""

    def bucket(self, ahead, buckets):
        half = buckets // 2
        return _log_bucket(ahead.abs(), half, self.distance) + half * (ahead > 0)


def _log_bucket(steps, buckets, distance):
    """0, 1, 2 … for the first half of the buckets, then a log scale that ends at `distance`."""
    near = buckets // 2
    progress = (steps.float().clamp(min=1) / near).log() / math.log(distance / near)
    far = near + (progress * (buckets - near)).long()
    return torch.where(steps < near, steps, far.clamp(max=buckets - 1))


def _angles(t0, T, width, device):
    """Position times frequency, in float64 to stay exact at far positions: (T, width/2)."""
    wide = _widest_float(device)
    frequency = 10_000.0 ** -(torch.arange(0, width, 2, device=device, dtype=wide) / width)
    return torch.arange(t0, t0 + T, device=device, dtype=wide)[:, None] * frequency


def _widest_float(device):
    """float64, or float32 on MPS, which has no float64."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def _check_even(width, message):
    if width % 2:
        raise ValueError(f"{message}, got {width}")


POSITIONS = {
    "none": NoPositions,
    "learned": Learned,
    "sinusoidal": Sinusoidal,
    "rotary": Rotary,
    "relative": Relative,
}
