"""Fold bytes into patches and back. Patches are aligned by target, so that no future leaks.

The logit at position t predicts byte u = t + 1. It may use the patches that are *complete* before
byte u, namely patches 0 … floor(u / R) - 1, and byte u is number u mod R of the next patch. The
bytes of the unfinished patch reach the logit through the byte layers around this module.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .layers import ResidualLinear
from .masks import Mask, refuse_mask


class PatchState(NamedTuple):
    """The state of a patch path: of fixed size, given a trunk whose state is of fixed size."""

    t: int  # bytes read so far
    recent: Tensor  # (B,R-1,D): the last byte vectors, across patches
    hint: Tensor  # (B,R,D): the last complete patch's hints for the next R bytes
    trunk: tuple  # the trunk's own state; None before its first patch


class PatchPath(nn.Module):
    """Fold R byte vectors into one patch, run the trunk once per patch, unfold it to R hints.

        patch_p = W_fold [x_{pR} … x_{pR+R-1}]     hints of p = W_unfold trunk(patch_0 … patch_p)
        y_t = hint number (t + 1) mod R of patch floor((t + 1) / R) - 1, zero before the first

    `fold` is a strided convolution and `unfold` a transposed one, written as the matrices they are.
    A patch mixes its bytes, so a mask cannot hide one of them.

    Options  size R, bytes per patch; trunk, a mixer or a stack; d_trunk, the width of the trunk

    Shapes   x (B,T,D), any T  ->  y (B,T,D)
    State    PatchState: (2R-1) D numbers and the trunk's state
    Cost     one R-th of the trunk's cost per byte
    Paper    aligned as SpaceByte, Slagle 2024, 2404.14408: a patch is read at its last byte
    Raises   ValueError for a mask that hides more than the future
    """

    def __init__(self, d_model: int, size: int, trunk: nn.Module, d_trunk: int):
        super().__init__()
        self.size, self.trunk = size, trunk
        self.fold = nn.Linear(size * d_model, d_trunk, bias=False)
        self.unfold = ResidualLinear(d_trunk, size * d_model, bias=False)

    def forward(
        self, x: Tensor, state: PatchState | None = None, mask: Mask | None = None
    ) -> tuple[Tensor, PatchState]:
        refuse_mask(mask, self)
        B, T, D = x.shape
        R = self.size
        if state is None:
            state = PatchState(0, x.new_zeros(B, R - 1, D), x.new_zeros(B, R, D), None)
        loose = state.t % R
        seen = torch.cat((state.recent.to(x.dtype), x), dim=1)
        pending = seen[:, R - 1 - loose :]  # (B, loose + T, D), starting at a patch's first byte
        n = pending.shape[1] // R
        hints, trunk = state.hint.to(x.dtype), state.trunk
        if n:
            patches = self.fold(pending[:, : n * R].reshape(B, n, R * D)).to(x.dtype)
            out, trunk = self.trunk(patches, trunk)
            hints = torch.cat((hints, self.unfold(out).view(B, n * R, D).to(x.dtype)), dim=1)
        y = hints[:, loose + 1 : loose + 1 + T]
        return y, PatchState(state.t + T, seen[:, T:].clone(), hints[:, -R:].clone(), trunk)
