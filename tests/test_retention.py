"""The linear Transformer and RetNet equal loops written out from their papers."""

import cmath

import pytest
import torch
import torch.nn.functional as F
from helpers import same, vectors

from qllk.model.retention import LinearTransformer, Retention

HEADS, D, T = 2, 8, 21


def of_heads(x, heads):
    """x (T,D) by head: (H,T,D/H)."""
    return x.view(len(x), heads, -1).transpose(0, 1)


def gradients_agree(mixer, found, expected):
    weigh = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    parameters = [p for p in mixer.parameters() if p.requires_grad]
    pairs = (torch.autograd.grad((y * weigh).sum(), parameters) for y in (found, expected))
    for one, other in zip(*pairs, strict=True):
        assert other.any()
        same(one, other, atol=1e-9)


def test_the_linear_transformer_averages_values_by_its_feature_map():
    """Katharopoulos 2020, equation 9, with the sums written out."""
    mixer, x = LinearTransformer(D, heads=HEADS).double(), vectors(1, T, D)
    q, k, v = (of_heads(part, HEADS) for part in mixer.qkv(x)[0].chunk(3, dim=-1))
    phi = lambda x: torch.where(x > 0, x + 1, x.exp())  # noqa: E731
    rows = []
    for t in range(T):
        weights = (phi(q[:, t, None]) * phi(k[:, : t + 1])).sum(-1)  # (H,t+1)
        shares = weights / weights.sum(-1, keepdim=True)
        rows.append((shares[..., None] * v[:, : t + 1]).sum(1).flatten())
    expected = mixer.out(torch.stack(rows))[None]
    found, _ = mixer(x)
    same(found, expected)
    gradients_agree(mixer, found, expected)


def turned(x, t):
    """Pairs of channels as complex numbers, turned by t times their own angle: one head's row."""
    half = len(x) // 2
    numbers = torch.complex(x[:half], x[half:])
    angles = [10_000 ** -(i / half) for i in range(half)]
    return numbers * torch.tensor([cmath.exp(1j * angle * t) for angle in angles])


def test_retention_is_its_parallel_form_written_out():
    """RetNet, equations 5 and 8: (Q K^T * D) V with D_nm = gamma^(n-m), complex rotations."""
    mixer, x = Retention(D, heads=HEADS).double(), vectors(1, T, D)
    q, k = (of_heads(part, HEADS) for part in mixer.qk(x)[0].chunk(2, dim=-1))
    v, g = (of_heads(part, HEADS) for part in mixer.vg(x)[0].chunk(2, dim=-1))
    rows = []
    for t in range(T):
        row = []
        for h in range(HEADS):
            gamma, query = 1 - 2.0 ** (-5 - h), turned(q[h, t], t)
            o = torch.zeros_like(v[h, 0])
            for m in range(t + 1):
                key = turned(k[h, m], m)
                score = (query * key.conj()).sum().real * (D // HEADS) ** -0.5
                o = o + gamma ** (t - m) * score * v[h, m]
            centred = o - o.mean()
            row.append(centred / (centred.square().mean() + 1e-5).sqrt())
        rows.append(F.silu(g[:, t].flatten()) * torch.cat(row))
    expected = mixer.out(torch.stack(rows))[None]
    found, _ = mixer(x)
    same(found, expected, atol=1e-6)  # the buffer of decays was made in float32
    gradients_agree_roughly(mixer, found, expected)


def gradients_agree_roughly(mixer, found, expected):
    weigh = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    pairs = (
        torch.autograd.grad((y * weigh).sum(), list(mixer.parameters())) for y in (found, expected)
    )
    for one, other in zip(*pairs, strict=True):
        assert other.any()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_retention_of_no_width_is_refused():
    with pytest.raises(ValueError, match="expand must be a whole number above 0, got 0"):
        Retention(D, heads=2, expand=0)
