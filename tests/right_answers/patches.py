"""Right answers to the exercises of lesson 06."""

import torch
import torch.nn.functional as F


def fold_by_convolution(x, weight):
    if x.shape[1] < weight.shape[2]:
        return x.new_zeros(len(x), 0, len(weight))
    return F.conv1d(x.transpose(1, 2), weight, stride=weight.shape[2]).transpose(1, 2)


def fold_by_name(x, weight):
    R = weight.shape[2]
    P = x.shape[1] // R
    return torch.einsum("bprd,edr->bpe", x[:, : P * R].unflatten(1, (P, R)), weight)


def hint_by_remainder(t, R):
    patch, offset = divmod(t + 1, R)
    return patch - 1, offset


def hint_counted_from_the_end(t, R):
    offset = (t + 1) % R
    return (t + 1 - offset) // R - 1, offset


def shift_by_layout(x, R):
    B, T, D = x.shape
    P = T // R
    if P == 0:
        return torch.zeros_like(x)
    in_place = x[:, : P * R].reshape(B, P, R, D).mean(dim=2).repeat_interleave(R, dim=1)
    more = in_place[:, -1:].expand(-1, R, -1)  # the unfinished patch reads the newest one
    return F.pad(torch.cat((in_place, more), dim=1), (0, 0, R - 1, T))[:, :T]


def shift_step_by_step(x, R):
    newest, rows = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        if (t + 1) % R == 0:
            newest = x[:, t + 1 - R : t + 1].sum(dim=1) / R
        rows.append(newest)
    return torch.stack(rows, dim=1)


ANSWERS = {
    "fold": (fold_by_convolution, fold_by_name),
    "hint_index": (hint_by_remainder, hint_counted_from_the_end),
    "shift": (shift_by_layout, shift_step_by_step),
}
