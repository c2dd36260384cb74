"""Right answers to the exercises of lesson 03."""

import torch


def kernel_step_by_step(q, k, v):
    S, rows = 0.0, []
    for t in range(q.shape[1]):
        S = S + k[:, t] * v[:, t]
        rows.append(q[:, t] * S)
    return torch.stack(rows, dim=1)


def resume_with_the_state_as_a_first_term(k, v, S):
    sums = torch.cat((S[:, None], k * v), dim=1).cumsum(1)[:, 1:]
    return sums, sums[:, -1]


def resume_step_by_step(k, v, S):
    sums = []
    for t in range(k.shape[1]):
        S = S + k[:, t] * v[:, t]
        sums.append(S)
    return torch.stack(sums, dim=1), S


ANSWERS = {
    "kernel": (kernel_step_by_step, lambda q, k, v: torch.cumsum(v * k, 1) * q),
    "resume": (resume_with_the_state_as_a_first_term, resume_step_by_step),
    "state_numbers": (lambda d, h: d * (d // h), lambda d, h: int(d * d / h)),
    "average": (
        lambda q, k, v: (q * (k * v).cumsum(1)) / (q * k.cumsum(1)),
        lambda q, k, v: torch.cumsum(v * k, 1) * (1 / torch.cumsum(k, 1)),
    ),
}
