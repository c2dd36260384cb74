"""Right answers to the exercises of lesson 14."""

import torch

from qllk.model.masks import causal_mask


def kept_by_the_mask(t, window, sinks):
    return causal_mask(t + 1, t + 1, window, sinks)[-1, :-1]


def kept_by_slices(t, window, sinks):
    keep = torch.zeros(t, dtype=torch.bool)
    keep[:sinks] = True
    keep[max(0, t - window + 1) :] = True
    return keep


def absorb_by_a_batch_of_matrices(q, to_k):
    return (q[:, None] @ to_k)[:, 0]


def absorb_by_a_loop(q, to_k):
    return torch.stack([matrix.T @ row for row, matrix in zip(q, to_k, strict=True)])


def window_by_gradients(layer):
    x = torch.ones(1, 12, 1, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0, -1].sum(), x)
    return 12 - int(gradient[0, :, 0].nonzero().min())


def window_from_the_oldest(layer):
    x = torch.randn(1, 12, 1, dtype=torch.float64)
    for t in range(12):
        changed = x.clone()
        changed[0, : t + 1] += 1.0
        if (layer(changed)[0, -1] != layer(x)[0, -1]).any():
            return 12 - t
    return 0


ANSWERS = {
    "kept": (kept_by_the_mask, kept_by_slices),
    "absorb": (absorb_by_a_batch_of_matrices, absorb_by_a_loop),
    "window_of": (window_by_gradients, window_from_the_oldest),
}
