"""The patch path: where its hints go, and what it refuses."""

import pytest
import torch
from helpers import same, vectors
from torch import nn

from qllk.model.masks import Mask
from qllk.model.patching import PatchPath
from qllk.model.recurrent import CumsumMixer


class Through(nn.Module):
    """A trunk that changes nothing."""

    def forward(self, x, state=None, mask=None):
        return x, state


def path_of(size, trunk, d_trunk=6):
    return PatchPath(2, size, trunk, d_trunk).double()


def test_a_hint_is_made_of_the_last_complete_patch_and_of_no_later_byte():
    path, x = path_of(3, Through()), vectors(1, 8, 2)
    first, second = (x[0, i : i + 3].flatten() @ path.fold.weight.T for i in (0, 3))
    hints = torch.cat([(patch @ path.unfold.weight.T).view(3, 2) for patch in (first, second)])
    y, state = path(x)
    same(y[0, :2], torch.zeros(2, 2).double())  # no patch is complete yet
    same(y[0, 2:], hints)  # number u mod 3 of the patch before byte u = t + 1
    assert state.t == 8
    same(state.hint[0], hints[3:])
    same(state.recent, x[:, 6:])


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_trunk_runs_once_a_patch(size):
    path, calls = path_of(size, CumsumMixer(6)), []
    path.trunk.register_forward_hook(lambda trunk, inputs, output: calls.append(inputs[0].shape[1]))
    state = None
    for x in vectors(1, 10, 2).split(1, dim=1):
        _, state = path(x, state)
    assert calls == [1] * (10 // size)
    path(vectors(1, 10, 2))
    assert calls[-1] == 10 // size


def test_a_patch_path_refuses_a_mask_that_hides_one_of_its_bytes():
    path, x = path_of(2, Through()), vectors(1, 4, 2)
    same(path(x, None, Mask())[0], path(x)[0], atol=0)
    for mask in (Mask(documents=torch.zeros(1, 4)), Mask(text=torch.ones(1, 4).bool())):
        with pytest.raises(ValueError, match="PatchPath cannot be masked"):
            path(x, None, mask)
