"""Parts of one's own, by name in a Spec."""

import pytest
import torch
from helpers import same
from test_check_laws import Fading
from torch import nn

import qllk
from qllk.model import register as registry
from qllk.model.layers import SquaredReluMLP
from qllk.model.positions import NoPositions
from qllk.probes import visibility


@pytest.fixture(autouse=True)
def tables_as_they_were():
    before = {kind: dict(table) for kind, table in registry._TABLES.items()}
    yield
    for kind, table in registry._TABLES.items():
        table.clear()
        table.update(before[kind])


class Counting(NoPositions):
    """Adds the number of the step."""

    def add(self, x, t0):
        return x + 0.01 * torch.arange(t0, t0 + x.shape[1], dtype=x.dtype)[:, None]


class Doubled(nn.Module):
    def __init__(self, d_model, *, times=2.0):
        super().__init__()
        self.times = times

    def forward(self, x):
        return self.times * x


def test_a_registered_mixer_mlp_and_positions_make_a_model_that_streams():
    qllk.register("mixer", "fading", Fading)
    qllk.register("mlp", "doubled", Doubled)
    qllk.register("positions", "counting", Counting)
    spec = qllk.Spec(
        d_model=8,
        layers=2,
        mixers=(("fading", {}),),
        mlp=("doubled", {"times": 3.0}),
        positions="counting",
    )
    model = qllk.build(qllk.Spec.from_json(spec.to_json())).double()
    assert model.body.blocks[1].mlp.times == 3.0
    ids = torch.randint(256, (2, 13))
    first, state = model.run(ids[:, :5])
    second, state = model.run(ids[:, 5:], state)
    same(torch.cat((first, second), dim=1), model(ids))
    assert not visibility(model, 9).triu(1).any()
    rms = qllk.probes.state_rms(state)
    assert list(rms) == ["byte 1 state", "byte 2 state"]
    assert all(value > 0 for value in rms.values())


def test_registered_positions_serve_an_encoder_too():
    qllk.register("positions", "counting", Counting)
    spec = qllk.Spec(
        d_model=8,
        layers=1,
        mixers=(("softmax", {"heads": 2}),),
        positions="counting",
        family="encoder",
    )
    assert isinstance(qllk.build(spec).encoder.positions, Counting)


def test_registering_a_name_again_replaces_the_part():
    qllk.register("mlp", "mine", Doubled)
    qllk.register("mlp", "mine", SquaredReluMLP)
    spec = qllk.Spec(d_model=8, layers=1, mixers=(("conv", {"width": 2}),), mlp=("mine", {}))
    assert isinstance(qllk.build(spec).body.blocks[0].mlp, SquaredReluMLP)


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("mixer", "softmax", "the mixer 'softmax' belongs to this library; choose another name"),
        ("mlp", "gelu", "the mlp 'gelu' belongs to this library"),
        ("mixers", "mine", "unknown kind of part 'mixers'; choose from head, mixer, mlp"),
        ("mixer", "", "the name of a mixer must be a text, got ''"),
        ("mixer", None, "the name of a mixer must be a text, got None"),
    ],
)
def test_a_name_that_is_taken_or_none_is_refused(kind, name, words):
    with pytest.raises(ValueError, match=words):
        qllk.register(kind, name, Fading)


def test_a_spec_with_a_part_that_is_not_registered_says_which_are_known():
    spec = qllk.Spec(d_model=8, layers=1, mixers=(("fading", {}),))
    with pytest.raises(ValueError, match="unknown mixer 'fading'; choose from conv, cumsum"):
        qllk.build(spec)
