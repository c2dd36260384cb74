"""`check_laws` on mixers that keep the laws, and on others that break one of them each."""

import pytest
import torch
from test_laws import MIXING, mixer_of
from torch import nn

from qllk.probes import check_laws
from qllk.probes.laws import _T

NAMES = "pieces", "causality", "rows", "memory"


class Fading(nn.Module):
    """A running mean that fades: twelve lines that a learner might write."""

    def __init__(self, d_model, positions=None):
        super().__init__()
        self.mix = nn.Linear(d_model, d_model)

    def forward(self, x, state=None, mask=None):
        total, ys = torch.zeros_like(x[:, 0]) if state is None else state, []
        for step in self.mix(x).unbind(dim=1):
            total = 0.9 * total + step
            ys.append(total)
        return torch.stack(ys, dim=1), total


class SeesOneAhead(Fading):
    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, state)
        return y + x.roll(-1, dims=1), state


class Forgets(Fading):
    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x)
        return y, state


class WritesIntoTheState(Fading):
    def forward(self, x, state=None, mask=None):
        state = torch.zeros_like(x[:, 0]) if state is None else state
        ys = [state.add_(step).clone() for step in self.mix(x).unbind(dim=1)]
        return torch.stack(ys, dim=1), state


class NormalisesTheBatch(Fading):
    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, state)
        return y - x.mean(dim=0, keepdim=True), state


class KeepsEveryPair(nn.Module):
    """Right in its output, but its state holds a table of all pairs of steps."""

    def __init__(self, d_model, positions=None):
        super().__init__()
        self.mix = nn.Linear(d_model, d_model)

    def forward(self, x, state=None, mask=None):
        n = x.shape[1] + (0 if state is None else state.shape[-1])
        return self.mix(x), x.new_zeros(1, n, n)


class WithoutState(Fading):
    def forward(self, x, state=None, mask=None):
        return super().forward(x, state)[0]


class OfAnotherShape(Fading):
    def forward(self, x, state=None, mask=None):
        return x[..., :3], state


class StartsAtZero(SeesOneAhead):
    """Its output is zero at the start of training, and so is what it leaks."""

    def __init__(self, d_model, positions=None):
        super().__init__(d_model)
        self.gate = nn.Parameter(torch.zeros(d_model))

    def forward(self, x, state=None, mask=None):
        y, state = super().forward(x, state)
        return y * self.gate, state


@pytest.mark.parametrize("row", MIXING.values(), ids=MIXING)
def test_every_mixer_of_the_library_keeps_the_laws(row):
    laws = check_laws(mixer_of(row))
    assert laws.hold, laws
    assert tuple(law.name for law in laws) == NAMES
    sizes = {row.numbers(step) for step in (_T // 3, 2 * _T // 3, _T)}
    assert ("does not grow" in laws[3].sentence) is (len(sizes) == 1)


@pytest.mark.parametrize(
    ("broken", "law", "words"),
    [
        (SeesOneAhead, "causality", "The output at step 0 changes with the input at step 1."),
        (StartsAtZero, "causality", "The output at step 0 changes with the input at step 1."),
        (Forgets, "pieces", "the output at step 1 is another one"),
        (WritesIntoTheState, "pieces", "gives two outputs"),
        (NormalisesTheBatch, "rows", "Row 0 gives another output in a batch than alone."),
        (KeepsEveryPair, "memory", "64, 256 and 576 numbers after 8, 16 and 24 steps: it grows"),
    ],
)
def test_a_mixer_that_breaks_a_law_is_caught_in_words(broken, law, words):
    laws = {found.name: found for found in check_laws(broken)}
    assert not laws[law].holds
    assert words in laws[law].sentence
    assert f"{law} IS BROKEN" in repr(check_laws(broken))


def test_a_mixer_of_ones_own_keeps_the_laws_and_is_left_as_it_was():
    mixer = Fading(8).train()
    before = {name: value.clone() for name, value in mixer.state_dict().items()}
    laws = check_laws(mixer, d_model=8)
    assert laws.hold
    assert repr(laws).count("\n") == 3
    assert mixer.training
    assert mixer.mix.weight.dtype == torch.float32
    torch.testing.assert_close(dict(mixer.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (WithoutState, "a mixer returns a pair, y and a state; got Tensor"),
        (OfAnotherShape, r"in the shape of x, \(2, 24, 16\); got \(2, 24, 3\)"),
    ],
)
def test_what_is_no_mixer_is_refused_in_words(broken, words):
    with pytest.raises(ValueError, match=words):
        check_laws(broken)
