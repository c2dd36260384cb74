"""Recurrent mixers equal their formulas; decays and normalisers."""

import math

import pytest
import torch
from helpers import same, vectors

from qllk.model import kernels
from qllk.model.recurrent import (
    _DECAYS,
    NORMALISERS,
    CumsumMixer,
    DeltaRule,
    GatedConv,
    LinearAttention,
    log_decays,
)


def test_half_lives_run_from_the_shortest_to_the_longest_on_a_log_scale():
    decay = log_decays(3, 4, 64).double()
    same((decay * torch.tensor([4.0, 16, 64])).exp(), torch.full((3,), 0.5).double(), atol=1e-6)


def test_a_channel_of_the_cumsum_mixer_forgets_half_in_its_half_life():
    mixer = CumsumMixer(2, half_lives=(3, 6))
    _, S = kernels.running_sum(torch.eye(7)[:1, :, None].expand(1, 7, 2), mixer.log_decay)
    same(S, torch.tensor([[0.25, 0.5]]), atol=1e-6)  # six steps after a single one


def test_fixed_decays_are_those_of_the_retention_paper():
    decay = _DECAYS["fixed"](8, 4)(vectors(2, 3, 8))
    assert decay.shape == (2, 4, 3, 1)
    expected = [1 - 2**-5, 1 - 2**-6, 1 - 2**-7, 1 - 2**-8]
    assert decay.exp()[0, :, 0, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("name", "width"), [("head", 1), ("channel", 2)])
def test_learned_decays_forget_and_have_one_speed_for_each(name, width):
    decay = _DECAYS[name](8, 4).double()
    found = decay(vectors(2, 3, 8))
    assert found.shape == (2, 4, 3, width)
    assert (found < 0).all()
    zero = decay.requires_grad_(False)
    zero.speed.bias.zero_()
    half_life = math.log(0.5) / zero(torch.zeros(1, 1, 8).double())[0, 0, 0, 0].item()
    assert half_life == pytest.approx(16)


def test_normalisers_by_hand():
    sums = torch.tensor([[[3.0, 4.0], [6.0, -8.0]]], dtype=torch.float64)
    counts = torch.tensor([[4], [16]])
    expected = {
        "none": [[3, 4], [6, -8]],
        "count": [[0.75, 1], [0.375, -0.5]],
        "root": [[1.5, 2], [1.5, -2]],
        "rms": [[3 / 12.5**0.5, 4 / 12.5**0.5], [6 / 50**0.5, -8 / 50**0.5]],
    }
    assert set(expected) == set(NORMALISERS)
    for name, rows in expected.items():
        found = NORMALISERS[name](sums, counts)
        same(found, torch.tensor([rows], dtype=torch.float64), atol=1e-7)


def test_the_cumsum_mixer_computes_its_formula():
    mixer, x = CumsumMixer(6, normaliser="count").double(), vectors(2, 5, 6)
    q, k, v, g = (x @ W.T for W in mixer.qkvg.weight.split(6))
    mean = torch.stack([(k * v)[:, : t + 1].mean(1) for t in range(5)], dim=1)
    same(mixer(x)[0], (g.sigmoid() * q * mean) @ mixer.out.weight.T)


def test_linear_attention_computes_its_formula():
    mixer, x = LinearAttention(6, heads=2, decay="fixed").double(), vectors(1, 4, 6)
    q, k, v, g = (x[0] @ W.T for W in mixer.qkvg.weight.split(6))
    ages = (torch.arange(4)[:, None] - torch.arange(4)).double()
    heads = []
    for h, part in enumerate((slice(0, 3), slice(3, 6))):
        weight = ((1 - 2.0 ** -(5 + h)) ** ages).tril()
        o = (q[:, part] @ k[:, part].T / 3**0.5 * weight) @ v[:, part]
        heads.append(o / (o.square().mean(-1, keepdim=True) + torch.finfo(o.dtype).eps).sqrt())
    y = torch.cat(heads, dim=1) * g.sigmoid()
    same(mixer(x)[0][0], y @ mixer.out.weight.T, atol=1e-8)  # the fixed speeds were made in float32


def test_the_gated_convolution_computes_its_formula():
    mixer, x = GatedConv(4, width=3).double(), vectors(1, 5, 4)
    values, gate = (x[0] @ W.T for W in mixer.xg.weight.split(4))
    y = torch.stack(
        [sum(mixer.taps[j] * values[t - j] for j in range(3) if t >= j) for t in range(5)]
    )
    same(mixer(x)[0][0], (gate * gate.sigmoid() * y) @ mixer.out.weight.T)


def test_the_delta_mixer_computes_its_formula():
    mixer, x = DeltaRule(6, heads=2).double(), vectors(1, 4, 6)
    q, k, v, g = (x[0] @ W.T for W in mixer.qkvg.weight.split(6))
    heads = []
    for h, part in enumerate((slice(0, 3), slice(3, 6))):
        S, beta, rows = torch.zeros(3, 3).double(), (x[0] @ mixer.strength.weight[h]).sigmoid(), []
        for t in range(4):
            key = k[t, part] / k[t, part].norm()
            S = S + beta[t] * torch.outer(key, v[t, part] - key @ S)
            rows.append(q[t, part] / q[t, part].norm() @ S)
        o = torch.stack(rows)
        heads.append(o / (o.square().mean(-1, keepdim=True) + torch.finfo(o.dtype).eps).sqrt())
    y = torch.cat(heads, dim=1) * g.sigmoid()
    same(mixer(x)[0][0], y @ mixer.out.weight.T)
