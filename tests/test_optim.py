"""Optimizers: each equals its twin step for step, and its state has the size it claims."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers import SPEC, same

from qllk.model.blocks import Stack
from qllk.model.families import build
from qllk.probes import measure
from qllk.probes.inside import state_bytes
from qllk.text.corpora import task
from qllk.training import checkpoint, optim
from qllk.training.checkpoint import _check_run
from qllk.training.optim import OPTIMIZERS, AdamW, Lion
from qllk.training.recipe import Recipe
from qllk.training.snapshot import Snapshot, take_snapshot
from qllk.training.trainer import Trainer

RECIPE = Recipe(steps=40, batch=4, window=24, warmup=0.1, validate_every=1000, validate_bytes=200)
CORPUS = task("markov", 4000)
FLOOR = CORPUS.floor


def trainer(**changes):
    return Trainer(SPEC, CORPUS, replace(RECIPE, **changes))


def weights(dtype=torch.float64):
    return [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((5, 3), (7,))]


def trained(optimizer, steps=20):
    """The optimizer after random gradients, the same for all, at changing learning rates."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step)
            for p in group["params"]:
                p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
        optimizer.step()
    return optimizer


def together(first, twin, dtype=torch.float64):
    """Pairs of weights, one of each optimizer, after the same gradients."""
    mine = weights(dtype)
    other = copy.deepcopy(mine)
    trained(first(mine)), trained(twin(other))
    return list(zip(mine, other, strict=True))


# ---------------------------------------------------------------- equal to their twins


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lion_is_the_published_one_bit_for_bit(dtype):
    published = pytest.importorskip("lion_pytorch").Lion
    options = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.3}
    for got, expected in together(
        lambda ps: Lion(ps, **options), lambda ps: published(ps, **options), dtype
    ):
        assert torch.equal(got, expected)


def test_adamw_equals_that_of_torch():
    options = {"lr": 0.1, "betas": (0.9, 0.98), "weight_decay": 0.3}
    for got, expected in together(
        lambda ps: AdamW(ps, **options), lambda ps: torch.optim.AdamW(ps, **options)
    ):
        same(got, expected, atol=1e-12)


def test_a_weight_without_a_gradient_does_not_change_and_has_no_state():
    used, unused = weights()
    before = unused.clone()
    optimizer = Lion([used, unused], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    used.grad = torch.ones_like(used)
    optimizer.step()
    assert torch.equal(unused, before)
    assert unused not in optimizer.state


# ---------------------------------------------------------------- bfloat16


def rounding_of(beta, dtype):
    """The moving mean square of noise that grew quiet, relative to the same in float32."""
    square = torch.randn(2000, 4000, generator=torch.Generator().manual_seed(0)).square()
    square[:100] *= 100
    exact, kept = torch.zeros(2, 4000)
    for new in square:
        exact = exact * beta + new * (1 - beta)
        kept = (kept * beta + new * (1 - beta)).to(dtype).float()
    return (kept.mean() / exact.mean()).item()


def test_rounding_to_nearest_is_unbiased_for_a_fast_moment_and_ruins_a_slow_one():
    assert rounding_of(0.98, torch.bfloat16) == pytest.approx(1.0, abs=0.01)
    assert rounding_of(0.999, torch.bfloat16) > 3  # it cannot shrink, so such betas are refused


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.995)])
def test_betas_for_which_rounding_would_stop_a_moment_are_refused(betas):
    with pytest.raises(
        ValueError, match=r"0.99.*torch.bfloat16: .* at least 0.0078 .*at most 0.99"
    ):
        AdamW(weights(), lr=0.1, betas=betas, dtype=torch.bfloat16)
    AdamW(weights(), lr=0.1, betas=betas)


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_bfloat16_halves_the_state_of_an_optimizer(name):
    def bytes_per_weight(name):
        run = trainer(optimizer=name)
        next(run)
        states = run.optimizer.state.values()
        means = [v for state in states for v in state.values() if v.ndim]
        return state_bytes(means) / sum(p.numel() for p in run.model.parameters())

    full = {"adamw": 8, "lion": 4}[name]
    assert bytes_per_weight(name) == full
    assert bytes_per_weight(f"{name}-bfloat16") == full / 2


@pytest.mark.parametrize("name", ["adamw-bfloat16", "lion-bfloat16"])
def test_weights_are_updated_in_their_own_dtype(name):
    torch.manual_seed(0)
    (p,) = optimizer_weights = [torch.nn.Parameter(torch.randn(50))]
    trained(OPTIMIZERS[name](optimizer_weights, lr=0.1), steps=3)
    assert p.dtype == torch.float32
    assert not torch.equal(p, p.bfloat16().float())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loaded_optimizer_has_its_state_in_the_same_dtype(name):
    first = weights(torch.float32)
    optimizer = trained(OPTIMIZERS[name](first, lr=0.1))
    second = copy.deepcopy(first)
    again = OPTIMIZERS[name](second, lr=0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(first, second, strict=True):
        for key, value in optimizer.state[p].items():
            assert torch.equal(again.state[q][key], value)
            assert again.state[q][key].dtype == value.dtype
    trained(optimizer), trained(again)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_initial_state_has_the_keys_shapes_and_dtypes_of_the_state_after_a_step(name):
    run = trainer(optimizer=name)
    expected = optim.init_state(run.optimizer)
    next(run)
    ps = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert len(ps) == len(expected)
    for p, initial in zip(ps, expected, strict=True):
        got = run.optimizer.state[p]
        assert got.keys() == initial.keys()
        assert all(got[k].shape == v.shape and got[k].dtype == v.dtype for k, v in initial.items())


# ---------------------------------------------------------------- in the trainer


def bits(run):
    return {name: value.clone() for name, value in take_snapshot(run).tensors.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_with_any_optimizer_resumes_bit_for_bit(name, tmp_path):
    whole, first = trainer(optimizer=name), trainer(optimizer=name)
    expected = [next(whole).nats for _ in range(12)]
    got = [next(first).nats for _ in range(5)]
    loaded = checkpoint.load(checkpoint.save(first, tmp_path / "run"))
    loaded = checkpoint.load(checkpoint.save(loaded, tmp_path / "again"))  # before any step
    got += [next(loaded).nats for _ in range(7)]
    assert got == expected
    mine, other = bits(whole), bits(loaded)
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_the_memory_of_another_optimizer_is_refused(tmp_path):
    run = trainer(optimizer="lion")
    next(run)
    tensors, metadata = take_snapshot(run)
    metadata["recipe"]["optimizer"] = "adamw"
    with pytest.raises(ValueError, match=r"'optimizer.0.exp_avg_sq' is missing"):
        _check_run(trainer(), Snapshot(tensors, metadata))
    metadata["recipe"]["optimizer"] = "lion-bfloat16"
    with pytest.raises(ValueError, match=r"float32, expected .* torch.bfloat16"):
        _check_run(trainer(optimizer="lion-bfloat16"), Snapshot(tensors, metadata))
    with pytest.raises(ValueError, match="its recipe has optimizer='lion-bfloat16', but this one"):
        _check_run(trainer(), Snapshot(tensors, metadata))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_what_there_is_to_learn(name):
    lr = 1e-2 if name.startswith("lion") else 2e-2
    run = trainer(steps=150, lr=lr, optimizer=name)
    nats = [record.nats for record in run]
    assert sum(nats[-10:]) / 10 < FLOOR + 0.4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_decays_matrices_only(name):
    run = trainer(optimizer=name)
    matrices, others = run.optimizer.param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in matrices["params"]} == {2}


# ---------------------------------------------------------------- computing again


def dropped(recompute, spec):
    run = Trainer(spec, CORPUS, replace(RECIPE, recompute=recompute, accumulate=2))
    return run, [next(run).nats for _ in range(6)]


@pytest.mark.parametrize("recompute", [1, 2, 3])
@pytest.mark.parametrize("spec", [SPEC.but(layers=5), SPEC.but(layers=3, patch=None)], ids=str)
def test_computing_again_changes_no_number_dropout_included(spec, recompute):
    plain, expected = dropped(0, spec)
    run, got = dropped(recompute, spec)
    assert got == expected
    mine, other = bits(plain), bits(run)
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def deep(recompute, layers=8):
    model = build(SPEC.but(layers=layers, patch=None, dropout=0.0), seed=0)
    for module in model.modules():
        if isinstance(module, Stack):
            module.recompute = recompute
    return model, torch.zeros(2, 32, dtype=torch.long)


def test_computing_again_keeps_one_input_for_every_k_blocks():
    one_input = 2 * 32 * 8 * 4  # bytes of a (B,T,D) tensor
    saved = {}
    for k in (0, 1, 2, 4, 8):
        model, ids = deep(k)
        saved[k] = measure.saved_bytes(lambda model=model, ids=ids: model(ids))
    assert [saved[1] - saved[k] for k in (2, 4, 8)] == [n * one_input for n in (4, 6, 7)]
    assert saved[0] > 5 * saved[1]


def test_the_peak_is_lowest_when_every_block_is_its_own_piece():
    def peak(k):
        model, ids = deep(k)
        return measure.trace_memory(lambda: model(ids).sum().backward()).peak_bytes

    assert peak(1) < peak(2) < peak(4) < peak(8)
    assert peak(1) < 0.5 * peak(0)


def test_a_repeated_forward_pass_costs_a_third_of_the_work():
    def work(k):
        model, ids = deep(k, layers=16)
        return measure.count_flops(lambda: model(ids).sum().backward())

    assert 1.1 < work(1) / work(0) < 4 / 3  # less: a piece stops where the last need is met


def test_the_state_of_a_stack_that_computes_again_is_the_same():
    (plain, ids), (again, _) = deep(0), deep(2)
    states = [model.run(ids)[1] for model in (plain, again)]
    assert str(states[0]) == str(states[1])
