"""minGRU and minLSTM equal their recurrences, and the published form in logarithms."""

import pytest
import torch
import torch.nn.functional as F
from helpers import same, vectors

from qllk.model.minimal import MinGRU, MinLSTM

D, T = 6, 23


def above_zero(x):
    return torch.where(x >= 0, x + 0.5, x.sigmoid())


def stepped(mixer, keep, write, candidate):
    """The recurrence, one step at a time, and the layer's output."""
    h, rows = torch.zeros_like(candidate[:, 0]), []
    for t in range(T):
        h = keep[:, t] * h + write[:, t] * candidate[:, t]
        rows.append(h)
    return mixer.out(torch.stack(rows, dim=1))


def in_logarithms(mixer, log_keep, log_write, candidate):
    """The paper's parallel scan (appendix B): all numbers are above zero, so logs can be added."""
    total = log_keep.cumsum(dim=1)
    sums = (log_write + candidate.log() - total).logcumsumexp(dim=1)
    return mixer.out((total + sums).exp())


def agree(mixer, found, *expected):
    for other in expected:
        same(found, other)
        for one, two in zip(
            *(
                torch.autograd.grad(y.square().sum(), list(mixer.parameters()), retain_graph=True)
                for y in (found, other)
            ),
            strict=True,
        ):
            assert two.any()
            same(one, two, atol=1e-9)


def test_mingru_equals_its_recurrence_and_the_published_scan():
    mixer, x = MinGRU(D, expand=1.5).double(), vectors(2, T, D)
    candidate, z = mixer.project(x).chunk(2, dim=-1)
    share, candidate = z.sigmoid(), above_zero(candidate)
    agree(
        mixer,
        mixer(x)[0],
        stepped(mixer, 1 - share, share, candidate),
        in_logarithms(mixer, -F.softplus(z), -F.softplus(-z), candidate),
    )


def test_minlstm_equals_its_recurrence_and_the_published_scan():
    mixer, x = MinLSTM(D).double(), vectors(2, T, D)
    candidate, f, i = mixer.project(x).chunk(3, dim=-1)
    forget, take, candidate = f.sigmoid(), i.sigmoid(), above_zero(candidate)
    difference = F.softplus(-f) - F.softplus(-i)
    agree(
        mixer,
        mixer(x)[0],
        stepped(mixer, forget / (forget + take), take / (forget + take), candidate),
        in_logarithms(mixer, -F.softplus(difference), -F.softplus(-difference), candidate),
    )


def test_a_width_below_one_is_refused():
    with pytest.raises(ValueError, match=r"expand=0\.01: width must be a whole number above 0"):
        MinGRU(D, expand=0.01)
