"""Right answers to the exercises of lesson 12."""

import torch
import torch.nn.functional as F


def rotate_by_complex_numbers(q, t):
    half = q.shape[1] // 2
    points = torch.complex(q[:, :half], q[:, half:])
    angle = t[:, None] * 10_000.0 ** -(torch.arange(half) / half)
    turned = points * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=1)


def rotate_by_matrices(q, t):
    half, rows = q.shape[1] // 2, []
    for row, at in zip(q, t, strict=True):
        turn = torch.zeros(2 * half, 2 * half, dtype=q.dtype)
        for i in range(half):
            angle = at * 10_000.0 ** -(i / half)
            turn[i, i] = turn[i + half, i + half] = angle.cos()
            turn[i, i + half], turn[i + half, i] = -angle.sin(), angle.sin()
        rows.append(turn @ row)
    return torch.stack(rows)


def rms_norm_by_the_length(x, weight, eps):
    length = (x.norm(dim=-1, keepdim=True) ** 2 / x.shape[-1] + eps) ** 0.5
    return weight * (x / length)


def swiglu_by_einsum(x, gate, up, down):
    gated, read = torch.einsum("btd,fd->btf", x, gate), torch.einsum("btd,fd->btf", x, up)
    return torch.einsum("btf,df->btd", gated * gated.sigmoid() * read, down)


def swiglu_fused(x, gate, up, down):
    a, b = F.linear(x, torch.cat((gate, up))).chunk(2, dim=-1)
    return F.linear(F.silu(a) * b, down)


def shift_error_by_diagonals(score):
    rows = [[score(i, j) for j in range(8)] for i in range(8)]
    table = torch.tensor(rows, dtype=torch.float64)
    return (table[1:, 1:] - table[:-1, :-1]).abs().max().item()


def shift_error_by_distance(score):
    worst = 0.0
    for i in range(7):
        for j in range(7):
            worst = max(worst, score(i + 1, j + 1) - score(i, j), score(i, j) - score(i + 1, j + 1))
    return worst


ANSWERS = {
    "rotate": (rotate_by_complex_numbers, rotate_by_matrices),
    "rms_norm": (
        lambda x, weight, eps: F.rms_norm(x, weight.shape, weight, eps),
        rms_norm_by_the_length,
    ),
    "swiglu": (swiglu_by_einsum, swiglu_fused),
    "shift_error": (shift_error_by_diagonals, shift_error_by_distance),
}
