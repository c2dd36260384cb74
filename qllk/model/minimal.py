"""The GRU and the LSTM reduced to what a parallel sum can compute: minGRU and minLSTM.

Their gates depend on the input alone, and no longer on the state, so each is a running sum whose
decay changes from step to step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_positive
from . import kernels
from .layers import ResidualLinear
from .masks import Mask, refuse_mask
from .positions import NoPositions


class MinGRUState(NamedTuple):
    """State of minGRU: its hidden numbers."""

    h: Tensor  # (B,E)
    kind = "mingru"


class MinLSTMState(NamedTuple):
    """State of minLSTM: its hidden numbers."""

    h: Tensor  # (B,E)
    kind = "minlstm"


class MinGRU(nn.Module):
    """The minimal gated recurrent unit: each number keeps a share of itself and takes in the rest.

        h_t = (1 - z_t) h_{t-1} + z_t c_t      z = sigmoid(W_z x)      y = W_o h
        c = f(W_c x),  f(x) = x + 1/2 for x >= 0, else sigmoid(x)

    The candidate c is above zero, so that the published code can compute in logarithms; here the
    sum is computed as it stands.

    Options  expand  width E of the state, as a multiple of d_model
    State    MinGRUState: E numbers
    Cost     time O(T D E), all but O(T E) of it in the projections
    Paper    Feng 2024, 2410.01201, section 3.1 and appendix B
    """

    gates = 1

    def __init__(self, d_model: int, positions: NoPositions | None = None, *, expand: float = 1.0):
        super().__init__()
        width = round(expand * d_model)
        check_positive(f"a minimal recurrence with expand={expand}", width=width)
        self.project = nn.Linear(d_model, (self.gates + 1) * width, bias=False)
        self.out = ResidualLinear(width, d_model, bias=False)

    def forward(
        self, x: Tensor, state: NamedTuple | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, NamedTuple]:
        refuse_mask(mask, self)
        candidate, *gates = self.project(x).chunk(self.gates + 1, dim=-1)
        candidate = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
        log_keep, write = self.share(*gates)
        sums, h = kernels.running_sum(write * candidate, log_keep, state.h if state else None)
        return self.out(sums.to(x.dtype)), self.remember(h)

    def share(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithm of what is kept, and what is written: exp(log_keep) + write = 1."""
        return F.logsigmoid(-z), z.sigmoid()

    def remember(self, h: Tensor) -> NamedTuple:
        return MinGRUState(h)


class MinLSTM(MinGRU):
    """The minimal long short-term memory: as MinGRU, with a gate to forget and one to take in.

        h_t = f'_t h_{t-1} + i'_t c_t      f' = f / (f + i)      i' = i / (f + i)
        f = sigmoid(W_f x)      i = sigmoid(W_i x)

    Options, State, Cost   as MinGRU
    Paper    Feng 2024, 2410.01201, section 3.2 and appendix B
    """

    gates = 2

    def share(self, f: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        odds = F.softplus(-f) - F.softplus(-i)  # log(i / f)
        return F.logsigmoid(-odds), odds.sigmoid()

    def remember(self, h):
        return MinLSTMState(h)
