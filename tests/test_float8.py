"""Eight-bit floating point: every rounding is that of the real format, and the laws are kept."""

import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import SPEC, same

from qllk.model.families import build
from qllk.model.layers import LinearHead
from qllk.text.corpora import task
from qllk.training import checkpoint, float8
from qllk.training.float8 import _LARGEST, SimulatedLinear, _FakeQuantize, _row_scale, round_e4m3
from qllk.training.recipe import Recipe
from qllk.training.trainer import Trainer

RECIPE = Recipe(steps=60, batch=4, window=24, warmup=0.1, validate_every=1000, validate_bytes=200)
CORPUS = task("markov", 4000)


def cast(x):
    """The format itself; torch turns values beyond its range into NaN, hence the clamp."""
    return x.clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn).to(x.dtype)


def bitwise(a, b):
    """Equal, signs of zeros included."""
    kind = {torch.float32: torch.int32}.get(a.dtype, torch.int16)
    return torch.equal(a.view(kind), b.view(kind))


# ---------------------------------------------------------------- the format


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_sixteen_bits_is_rounded_as_the_cast_does(dtype):
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    x = every[~every.isnan()]
    assert bitwise(round_e4m3(x), cast(x))


def test_numbers_of_32_bits_are_rounded_as_the_cast_does_ties_and_their_neighbours_too():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    numbers = codes[~codes.isnan()].unique()  # -0 and 0 are one
    ties = (numbers[1:] + numbers[:-1]) / 2
    up = torch.tensor(torch.inf)
    some = torch.randint(-(1 << 31), 1 << 31, (200_000,)).to(torch.int32).view(torch.float32)
    for x in (numbers, ties, ties.nextafter(up), ties.nextafter(-up), some[~some.isnan()]):
        assert bitwise(round_e4m3(x), cast(x))
    assert len(numbers) == 253
    assert torch.equal(round_e4m3(numbers), numbers)


def test_what_is_too_large_becomes_the_largest_and_no_number_stays_none():
    inf = torch.inf
    got = round_e4m3(torch.tensor([449.0, -1e38, inf, -inf, torch.nan]))
    assert got[:4].tolist() == [448, -448, 448, -448]
    assert got[4].isnan()


# ---------------------------------------------------------------- scales


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_a_row_of_any_size_fills_the_format(size):
    x = size * torch.randn(50, 64)
    scale = _row_scale(x)
    assert torch.equal(scale.log2(), scale.log2().round())
    largest = (x * scale).abs().amax(-1)
    assert (largest <= _LARGEST).all()
    assert (largest > _LARGEST / 2).all()
    near = x.abs() > x.abs().amax(-1, keepdim=True) / 1000
    assert ((_FakeQuantize.apply(x) - x).abs() <= x.abs() / 16)[near].all()


def test_zeros_stay_zeros_and_what_is_rounded_is_rounded_no_further():
    assert torch.equal(_FakeQuantize.apply(torch.zeros(3, 4)), torch.zeros(3, 4))
    once = _FakeQuantize.apply(torch.randn(20, 30))
    assert torch.equal(_FakeQuantize.apply(once), once)


def test_a_scale_for_all_rows_would_leak_the_future():
    def whole(x):
        return round_e4m3(x * _row_scale(x.flatten())) / _row_scale(x.flatten())

    x = torch.randn(8, 16)
    later = x.clone()
    later[5:] *= 1000
    assert torch.equal(_FakeQuantize.apply(x)[:5], _FakeQuantize.apply(later)[:5])
    assert not torch.equal(whole(x)[:5], whole(later)[:5])


# ---------------------------------------------------------------- the layer


def test_the_gradient_goes_straight_through_and_the_products_see_rounded_numbers():
    layer = SimulatedLinear(32, 16)
    x = torch.randn(5, 32, requires_grad=True)
    y = layer(x)
    rounded, weight = _FakeQuantize.apply(x.detach()), _FakeQuantize.apply(layer.weight.detach())
    same(y, F.linear(rounded, weight, layer.bias), atol=0)
    assert (y - F.linear(x, layer.weight, layer.bias)).abs().max() > 1e-3
    gradient = torch.randn(5, 16)
    y.backward(gradient)
    same(x.grad, gradient @ weight, atol=1e-6)
    same(layer.weight.grad, gradient.T @ rounded, atol=1e-6)


def simulated(spec=SPEC):
    model = build(spec.but(dropout=0.0), seed=0)
    return float8.convert(model, "float8-simulated", device="cpu", precision="float32")


def test_all_layers_but_the_head_are_simulated_and_keep_their_weights():
    plain, model = build(SPEC.but(dropout=0.0), seed=0), simulated()
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert type(model.head) is LinearHead
    others = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.head]
    assert {type(module) for module in others} == {SimulatedLinear}
    ids = torch.randint(256, (2, 20))
    assert not torch.allclose(model(ids), plain(ids), atol=1e-4)


@pytest.mark.parametrize("fields", [{"head": "linear"}, {"head": "masked"}, {"tied": True}])
def test_no_head_of_any_kind_is_simulated(fields):
    plain, model = build(SPEC.but(**fields), seed=0), simulated(SPEC.but(**fields))
    assert isinstance(model.head, LinearHead)
    assert type(model.head) is type(plain.head)
    x = torch.randn(2, 3, 8)
    assert torch.equal(LinearHead.forward(model.head, x), LinearHead.forward(plain.head, x))


def test_a_simulated_model_sees_no_future_and_no_other_row():
    model, ids = simulated().double(), torch.randint(256, (3, 20))
    expected = model(ids)
    for _ in range(20):  # a shared scale is a power of two, which not every change moves
        later = ids.clone()
        later[:, 11:] = torch.randint(256, (3, 9))
        same(model(later)[:, :11], expected[:, :11])
    same(model(ids[1:2]), expected[1:2])


def test_a_simulated_layer_equals_that_of_torchao():
    torchao = pytest.importorskip("torchao.float8", reason="needs torchao")
    config = torchao.Float8LinearConfig.from_recipe_name("rowwise")
    layer = torch.nn.Linear(64, 32, bias=False)
    theirs = torchao.convert_to_float8_training(
        torch.nn.Sequential(layer), config=replace(config, emulate=True)
    )
    layer.__class__ = SimulatedLinear
    x = torch.randn(10, 64) * torch.logspace(-3, 3, 10)[:, None]
    assert torch.equal(layer(x), theirs(x))


# ---------------------------------------------------------------- in the trainer


def test_a_simulated_run_learns_nearly_as_well_and_resumes_bit_for_bit(tmp_path):
    def run(matmul):
        return Trainer(SPEC.but(dropout=0.0), CORPUS, replace(RECIPE, lr=2e-2, matmul=matmul))

    native, whole, first = run("native"), run("float8-simulated"), run("float8-simulated")
    exact = [record.nats for record in native]
    expected = [record.nats for record in whole]
    got = [next(first).nats for _ in range(20)]
    loaded = checkpoint.load(checkpoint.save(first, tmp_path / "run"))
    assert got + [record.nats for record in loaded] == expected != exact
    assert sum(expected[-10:]) / 10 < sum(exact[-10:]) / 10 + 0.1


def test_real_float8_is_refused_where_there_is_none(monkeypatch):
    message = "needs a CUDA device of compute capability 8.9 .* not cpu in bfloat16; 'float8-simul"
    model = build(SPEC)
    with pytest.raises(ValueError, match=message):
        float8.convert(model, "float8", device="cpu", precision="bfloat16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(ValueError, match=r"precision='bfloat16', not cuda:0 in float32"):
        float8.convert(model, "float8", device="cuda:0", precision="float32")
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ValueError, match=r"needs torchao, .* pip install torchao"):
        float8.convert(model, "float8", device="cuda:0", precision="bfloat16")


def test_a_run_that_multiplies_in_float8_stays_where_that_works(monkeypatch):
    run = Trainer(SPEC, CORPUS, RECIPE)
    run.recipe = replace(RECIPE, matmul="float8")
    run.submit("precision", "bfloat16")
    run.submit("device", "cpu")
    next(run)
    assert "matmul='float8' needs a CUDA device" in run.last_refusal
    assert run.log == []


def test_an_unknown_matmul_lists_the_known():
    with pytest.raises(ValueError, match="unknown matmul 'int4'; choose from float8, float8-sim"):
        float8.convert(build(SPEC), "int4", device="cpu", precision="float32")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device with FP8")
def test_real_float8_trains():
    pytest.importorskip("torchao", reason="needs torchao")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a CUDA device with FP8")
    spec = SPEC.but(d_model=64, patch=replace(SPEC.patch, d_model=64), dropout=0.0)
    recipe = replace(RECIPE, device="cuda", precision="bfloat16", matmul="float8")
    nats = [record.nats for record in Trainer(spec, CORPUS, recipe)]
    assert nats[-1] < nats[0] - 1
