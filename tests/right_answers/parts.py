"""Right answers to the exercises of lesson 12."""

import itertools

import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from qllk.model.layers import MLPS


def _angles(x, t0):
    K = x.shape[-1]
    rate = 1 / 10_000 ** (torch.arange(0, K, 2).double() / K)
    return torch.outer(torch.arange(t0, t0 + x.shape[2]).double(), rate)


def rotate_by_complex_numbers(x, t0):
    pairs = torch.complex(*x.chunk(2, dim=-1)) * torch.exp(1j * _angles(x, t0))
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def rotate_by_transformers(x, t0):
    angle = torch.cat((_angles(x, t0), _angles(x, t0)), dim=-1)[None]
    return apply_rotary_pos_emb(x, x, angle.cos(), angle.sin())[0]


def rms_norm_by_torch(x, w, eps):
    return F.rms_norm(x, w.shape, w, eps)


def rms_norm_by_lengths(x, w, eps):
    length = (x.pow(2).sum(dim=-1, keepdim=True) + eps * x.shape[-1]) ** 0.5
    return w * x * x.shape[-1] ** 0.5 / length


def swiglu_by_the_library(x, weights):
    D = x.shape[-1]
    mlp = MLPS["swiglu"](D, ratio=8 / 3).double()
    with torch.no_grad():
        mlp.gate_up.weight.copy_(weights[: 16 * D * D // 3].view(-1, D))
        mlp.out.weight.copy_(weights[16 * D * D // 3 :].view(D, -1))
        return mlp(x)


def swiglu_by_linear(x, weights):
    D = x.shape[-1]
    size = 8 * D * D // 3
    gate, up, out = (weights[n * size : (n + 1) * size] for n in range(3))
    gate = F.linear(x, gate.reshape(-1, D))
    return F.linear(gate * torch.sigmoid(gate) * F.linear(x, up.reshape(-1, D)), out.reshape(D, -1))


def shift_error_by_pairs(score, N):
    worst = 0
    for t, s in itertools.product(range(N), repeat=2):
        for more in range(1, N - max(t, s)):
            if s <= t:
                worst = max(worst, abs(score(t, s) - score(t + more, s + more)))
    return worst


def shift_error_by_a_table(score, N):
    table = torch.tensor([[score(t, s) for s in range(N)] for t in range(N)])
    rows = [table.diagonal(-d) for d in range(N)]
    return max((row.max() - row.min()).item() for row in rows)


ANSWERS = {
    "rotate": (rotate_by_complex_numbers, rotate_by_transformers),
    "rms_norm": (rms_norm_by_torch, rms_norm_by_lengths),
    "swiglu": (swiglu_by_the_library, swiglu_by_linear),
    "shift_error": (shift_error_by_pairs, shift_error_by_a_table),
}
