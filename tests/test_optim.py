"""Optimizers: each equals its twin step for step, and its state has the size it claims."""

import copy
import math
import time
from dataclasses import replace

import pytest
import torch
from helpers import SPEC, TINY, same

from qllk.model.blocks import Stack
from qllk.model.families import build
from qllk.model.layers import LinearHead
from qllk.probes import measure
from qllk.probes.inside import state_bytes
from qllk.text.corpora import task
from qllk.training import checkpoint, devices, optim
from qllk.training.checkpoint import load, save
from qllk.training.optim import OPTIMIZERS, AdamW, JoinedOptimizer, Lion, Muon, RowAdam
from qllk.training.place import _trial_step, check_memory, move_to
from qllk.training.recipe import Recipe
from qllk.training.snapshot import take_snapshot
from qllk.training.trainer import Diverged, Trainer

RECIPE = Recipe(steps=40, batch=4, window=24, warmup=0.1, validate_every=1000, validate_bytes=200)
CORPUS = task("markov", 4000)
FLOOR = CORPUS.floor


def trainer(**changes):
    return Trainer(SPEC, CORPUS, replace(RECIPE, **changes))


def weights(dtype=torch.float64):
    """A matrix and a vector."""
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


class Mixed(torch.nn.Module):
    """Of every kind of weight one: table, embedding, hidden matrix, norm and head."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(700, 8, sparse=True)
        self.embed = torch.nn.Embedding(256, 8)
        self.mix = torch.nn.Linear(8, 8, bias=False)
        self.norm = torch.nn.RMSNorm(8)
        self.head = LinearHead(8, 256)

    def forward(self, ids):
        ids = ids.long()
        pairs = (ids + 3 * torch.nn.functional.pad(ids, (1, 0))[:, :-1]) % 700
        x = self.embed(ids) + self.table(pairs)
        return self.head(self.norm(x + self.mix(x)))


def mixed(dtype=torch.float32, **changes):
    """A run of a Mixed model."""
    torch.manual_seed(0)
    return Trainer(Mixed().to(dtype), CORPUS, replace(RECIPE, **changes))


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
    layer = torch.nn.Linear(50, 1, bias=False)
    trained(optim.build_optimizer(name, layer, lr=0.1, weight_decay=0.0), steps=3)
    p = layer.weight
    assert p.dtype == torch.float32
    assert not torch.equal(p, p.bfloat16().float())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loaded_optimizer_has_its_state_in_the_same_dtype(name):
    first = torch.nn.Linear(3, 5)
    optimizer = trained(optim.build_optimizer(name, first, lr=0.1, weight_decay=0.1))
    second = copy.deepcopy(first)
    again = optim.build_optimizer(name, second, lr=0.1, weight_decay=0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    first, second = list(first.parameters()), list(second.parameters())
    for p, q in zip(first, second, strict=True):
        for key, value in optimizer.state[p].items():
            assert torch.equal(again.state[q][key], value)
            assert again.state[q][key].dtype == value.dtype
    trained(optimizer), trained(again)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("model", ["built", "with a table"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_initial_state_has_the_keys_shapes_and_dtypes_of_the_state_after_a_step(name, model):
    run = {"built": trainer, "with a table": mixed}[model](optimizer=name)
    expected = optim.init_state(run.optimizer)
    next(run)
    ps = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert len(ps) == len(expected)
    for p, initial in zip(ps, expected, strict=True):
        got = run.optimizer.state[p]
        assert got.keys() == initial.keys()
        assert all(got[k].shape == v.shape and got[k].dtype == v.dtype for k, v in initial.items())


# ---------------------------------------------------------------- Muon


def test_muon_equals_that_of_torch_as_far_as_bfloat16_reaches():
    options = {"lr": 0.1, "weight_decay": 0.3}
    for shape in ((5, 3), (3, 5), (40, 40)):
        mine = torch.nn.Parameter(torch.randn(shape))
        other = copy.deepcopy(mine)
        before = mine.detach().clone()
        trained(Muon([mine], betas=(0.95, 0.95), **options))
        trained(torch.optim.Muon([other], momentum=0.95, adjust_lr_fn="match_rms_adamw", **options))
        same(mine, other, atol=0.03 * (mine - before).abs().max().item())


def test_the_update_of_muon_has_singular_values_near_one_at_the_size_of_an_update_of_adamw():
    for shape in ((64, 64), (64, 256), (256, 64)):
        p = torch.nn.Parameter(torch.zeros(shape))
        p.grad = 1e-4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        Muon([p], lr=0.5, betas=(0.95, 0.95)).step()
        update = p.detach() / 0.5
        values = torch.linalg.svdvals(update) / (0.2 * max(shape) ** 0.5)
        assert values.median() > 0.68
        assert values.max() < 1.21
        assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_a_tall_matrix_costs_muon_no_more_than_a_wide_one():
    def work(*shape):
        return measure.count_flops(lambda: optim._orthogonalise(torch.randn(shape)))

    assert work(64, 8) == work(8, 64) < work(64, 64) / 8


def test_a_gradient_of_zeros_is_no_direction_for_muon():
    p = torch.nn.Parameter(torch.ones(3, 4))
    p.grad = torch.zeros(3, 4)
    Muon([p], lr=0.5, betas=(0.95, 0.95)).step()
    assert torch.equal(p, torch.ones(3, 4))


@pytest.mark.parametrize(
    "spec", [SPEC, TINY["gpt2"], TINY["bert-nano"], SPEC.but(tied=True)], ids=str
)
def test_muon_gets_the_hidden_matrices_and_adamw_all_other_weights(spec):
    model = build(spec, seed=0)
    optimizer = optim.build_optimizer("muon", model, lr=1e-3, weight_decay=0.1)
    muon, adamw = optimizer.parts
    assert (type(muon), type(adamw)) == (Muon, torch.optim.AdamW)
    hidden = {p for group in muon.param_groups for p in group["params"]}
    others = {p for group in adamw.param_groups for p in group["params"]}
    assert hidden | others == set(model.parameters())
    ends = ("embed", "segments", "positions", "head.weight", "taps", "norm", "bias")
    for name, p in model.named_parameters():
        assert (p in others) == any(end in name for end in ends), name


# ---------------------------------------------------------------- tables


def table_and_gradients(rows=50, steps=6, seed=0, dtype=torch.float64):
    """A table, and a sparse gradient for each step; some rows occur in several parts of one."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.nn.Parameter(torch.randn(rows, 4, dtype=dtype, generator=generator))
    found = [torch.randint(20, (1, 9), generator=generator) for _ in range(steps)]
    values = [torch.randn(9, 4, dtype=dtype, generator=generator) for _ in range(steps)]
    return table, [sparse(i, v, table.shape) for i, v in zip(found, values, strict=True)]


def sparse(rows, values, shape):
    return torch.sparse_coo_tensor(rows, values, shape, check_invariants=True)


def row_adam_loop(w, gradients, lr):
    """The definition of RowAdam."""
    v, n = [0.0] * len(w), [0] * len(w)
    for gradient in gradients:
        rows = set(gradient._indices()[0].tolist())
        for r in rows:
            g = gradient.to_dense()[r]
            n[r] += 1
            v[r] = 0.98 * v[r] + 0.02 * g.square().mean().item()
            w[r] -= 8 * lr * g / ((v[r] / (1 - 0.98 ** n[r])) ** 0.5 + 1e-8)
    return w


def test_row_adam_is_its_formula_row_by_row():
    table, gradients = table_and_gradients()
    expected = row_adam_loop(table.detach().clone(), gradients, lr=0.01)
    optimizer = RowAdam([table], lr=0.01, factor=8.0)
    for gradient in gradients:
        assert not gradient.is_coalesced()
        table.grad = gradient
        optimizer.step()
    same(table.detach(), expected, atol=1e-6)  # the counts are in float32


@pytest.mark.parametrize("rows", [[2, 3, 7, 40], [3, 2, 7, 40], [2, 3, 3, 7], [5], []], ids=str)
def test_repeated_rows_are_summed_as_torch_does_it(rows):
    gradient = sparse(torch.tensor([rows], dtype=torch.long), torch.randn(len(rows), 4), (50, 4))
    found, expected = optim._sum_repeated_rows(gradient), gradient.coalesce()
    assert found.is_coalesced()
    assert torch.equal(found.indices(), expected.indices())
    assert torch.equal(found.values(), expected.values())


def test_the_size_of_a_gradient_does_not_matter_to_row_adam():
    (small, gradients), (large, _) = table_and_gradients(), table_and_gradients()
    for table, size in ((small, 1.0), (large, 1000.0)):
        optimizer = RowAdam([table], lr=0.01, factor=8.0)
        for gradient in gradients:
            table.grad = size * gradient
            optimizer.step()
    same(small.detach(), large.detach(), atol=1e-6)


def test_rows_without_a_gradient_keep_weight_moment_and_count_bit_for_bit():
    table, gradients = table_and_gradients()
    optimizer = RowAdam([table], lr=0.01, factor=8.0)
    optimizer.state[table] = optimizer.init_state(table)
    for gradient in gradients:
        before = [x.clone() for x in (table.detach(), *optimizer.state[table].values())]
        table.grad = gradient
        optimizer.step()
        rest = torch.ones(50, dtype=torch.bool)
        rest[gradient._indices()[0]] = False
        after = (table.detach(), *optimizer.state[table].values())
        for old, new in zip(before, after, strict=False):
            assert torch.equal(old[rest], new[rest])
            assert (old[~rest] != new[~rest]).all()
    assert set(optimizer.state[table]) == {"exp_avg_sq", "step"}


def one_step(rows):
    """A step of RowAdam on the same 500 of many rows, as a function."""
    table = torch.nn.Parameter(torch.zeros(rows, 8))
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(rows, (1, 500), generator=generator)
    table.grad = sparse(found, torch.randn(500, 8, generator=generator), table.shape).coalesce()
    optimizer = RowAdam([table], lr=0.01, factor=8.0)
    optimizer.step()  # the first makes room for the state
    return optimizer.step


def test_a_step_of_row_adam_takes_no_longer_for_a_larger_table():
    def seconds(step):
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    small, large = one_step(10**4), one_step(10**6)
    pairs = [(seconds(small), seconds(large)) for _ in range(50)]
    fast, slow = map(min, zip(*pairs, strict=True))
    assert slow < 3 * fast


def test_a_step_of_row_adam_takes_no_more_memory_for_a_larger_table():
    small, large = (measure.trace_memory(one_step(rows)).peak_bytes for rows in (10**4, 10**6))
    assert large < 1.1 * small < 500_000


def test_a_dense_gradient_of_a_table_is_refused():
    table, _ = table_and_gradients()
    table.grad = torch.ones_like(table)
    with pytest.raises(ValueError, match=r"table of shape \(50, 4\) is dense, .* sparse=False"):
        RowAdam([table], lr=0.01, factor=8.0).step()


def test_tables_are_found_by_the_flag_of_torch():
    model = Mixed()
    assert optim.find_tables(model) == {model.table.weight}
    model.table.weight.requires_grad_(False)
    optimizer = optim.build_optimizer("adamw", model, lr=1e-3, weight_decay=0.1)
    assert type(optimizer) is torch.optim.AdamW
    assert optim.find_tables(build(SPEC)) == set()


def test_the_gradient_of_a_table_takes_no_memory_of_its_size():
    model = Mixed()
    dense = sum(p.numel() for p in model.parameters()) - 700 * 8
    assert optim.gradient_bytes(model) == 4 * dense
    states = optim.init_state(optim.build_optimizer("adamw", model, lr=1.0, weight_decay=0.0))
    counters = len(list(model.parameters())) - 1  # AdamW has one for each weight
    assert state_bytes([list(state.values()) for state in states]) == 4 * (
        2 * dense + counters + 2 * 700
    )


def test_a_model_fits_in_memory_without_the_gradient_of_its_table(monkeypatch):
    with torch.device("meta"):
        model = Mixed()
    needed = state_bytes(list(model.parameters())) + optim.gradient_bytes(model)
    monkeypatch.setattr(devices, "free_bytes", lambda device: needed)
    check_memory(model, "cpu")
    monkeypatch.setattr(devices, "free_bytes", lambda device: needed - 1)
    with pytest.raises(ValueError, match="the weights and gradients of this model take"):
        check_memory(model, "cpu")


# ---------------------------------------------------------------- several optimizers as one


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "muon"])
def test_a_model_without_tables_has_its_optimizer_alone(name):
    optimizer = optim.build_optimizer(name, build(SPEC), lr=1e-3, weight_decay=0.1)
    assert not isinstance(optimizer, JoinedOptimizer)
    assert len(optimizer.param_groups) == 2


def random_step(model, optimizer, seed):
    torch.manual_seed(seed)
    optimizer.zero_grad()
    model(torch.randint(256, (2, 9))).square().mean().backward()
    optimizer.step()


def test_joined_optimizers_do_what_each_of_them_would():
    joined, apart = Mixed(), Mixed()
    apart.load_state_dict(joined.state_dict())
    whole = optim.build_optimizer("adamw", joined, lr=0.5, weight_decay=0.1, table_lr=3.0)
    dense = [p for p in apart.parameters() if p is not apart.table.weight]
    groups = optim._split_by_decay(dense, 0.1)
    first = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    second = RowAdam([apart.table.weight], lr=0.5, factor=3.0)
    for step in range(4):
        for group in (*whole.param_groups, *first.param_groups, *second.param_groups):
            group["lr"] = 0.1 / (1 + step)
        random_step(joined, whole, step)
        random_step(apart, JoinedOptimizer([first, second]), step)
    assert all(map(torch.equal, joined.parameters(), apart.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_joined_optimizer_has_the_usual_state_dict_and_loads_it(name):
    model = Mixed()
    optimizer = optim.build_optimizer(name, model, lr=0.1, weight_decay=0.1)
    random_step(model, optimizer, 0)
    saved = optimizer.state_dict()
    ps = [p for group in optimizer.param_groups for p in group["params"]]
    assert [i for group in saved["param_groups"] for i in group["params"]] == list(range(len(ps)))
    assert set(ps) == set(model.parameters()) == set(optimizer.state)
    for index, p in enumerate(ps):
        assert saved["state"][index].keys() == optimizer.state[p].keys()
    again = copy.deepcopy(model)
    loaded = optim.build_optimizer(name, again, lr=7.0, weight_decay=0.0)
    random_step(again, loaded, 5)
    again.load_state_dict(model.state_dict())
    loaded.load_state_dict(copy.deepcopy(saved))
    for group in (*optimizer.param_groups, *loaded.param_groups):  # loading does not cut the ties
        group["lr"] = 0.05
    for step in range(1, 4):
        random_step(model, optimizer, step)
        random_step(again, loaded, step)
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            assert torch.equal(loaded.state[q][key], value)
            assert loaded.state[q][key].dtype == value.dtype


def test_a_weight_has_one_optimizer():
    table, _ = table_and_gradients()
    with pytest.raises(ValueError, match="more than one parameter group"):
        JoinedOptimizer(
            [RowAdam([table], lr=0.1, factor=8.0), RowAdam([table], lr=0.1, factor=8.0)]
        )


# ---------------------------------------------------------------- gradients


def test_dense_gradients_are_clipped_without_the_sparse_ones():
    model = Mixed()
    model(torch.arange(9)[None]).sum().backward()
    table, dense = model.table.weight, [p for p in model.parameters() if not p.grad.is_sparse]
    before = table.grad.to_dense().clone()
    expected = torch.cat([p.grad.flatten() for p in dense]).norm().item()
    got = optim.clip_gradients(model.parameters(), 0.5)
    assert got == pytest.approx(expected, rel=1e-5)
    clipped = torch.cat([p.grad.flatten() for p in dense]).norm().item()
    assert clipped == pytest.approx(0.5, rel=1e-4)
    assert torch.equal(table.grad.to_dense(), before)


def test_a_gradient_of_no_rows_is_finite():
    assert optim.is_finite(sparse(torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 4), (9, 4)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["table", "mix"])
def test_a_norm_is_not_finite_where_any_gradient_is_not(name, bad):
    model = Mixed()
    model(torch.arange(9)[None]).sum().backward()
    assert math.isfinite(optim.clip_gradients(model.parameters(), 0.5))
    gradient = getattr(model, name).weight.grad
    assert optim.is_finite(gradient)
    (gradient._values() if gradient.is_sparse else gradient)[0, 0] = bad
    assert not optim.is_finite(gradient)
    assert not math.isfinite(optim.clip_gradients(model.parameters(), 0.5))


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


@pytest.mark.parametrize("name", ["adamw", "lion-bfloat16", "muon"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_with_a_table_resumes_bit_for_bit(name, accumulate, tmp_path):
    changes = {"optimizer": name, "accumulate": accumulate}
    whole, first = mixed(**changes), mixed(**changes)
    expected = [next(whole).nats for _ in range(12)]
    got = [next(first).nats for _ in range(5)]
    path = checkpoint.save(first, tmp_path / "run")
    loaded = checkpoint.load(path, CORPUS, Mixed())
    loaded.move("cpu", "float32")
    got += [next(loaded).nats for _ in range(7)]
    assert got == expected
    mine, other = bits(whole), bits(loaded)
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_table_learns_and_rows_that_no_text_reads_stay():
    run = mixed(steps=150, lr=1e-2)
    before = run.model.table.weight.detach().clone()
    nats = [record.nats for record in run]
    assert sum(nats[-10:]) / 10 < FLOOR + 0.4
    (group,) = run.optimizer.parts[1].param_groups
    read = run.optimizer.state[group["params"][0]]["step"] > 0
    changed = (run.model.table.weight != before).any(1)
    assert torch.equal(read, changed)
    assert 10 < read.sum() < 690


def test_micro_batches_of_a_table_equal_the_large_batch():
    plain, parts = mixed(torch.float64), mixed(torch.float64, accumulate=4)
    for _ in range(5):
        a, b = next(plain), next(parts)
        assert a.nats == pytest.approx(b.nats, abs=1e-12)
        assert a.grad_norm == pytest.approx(b.grad_norm, abs=1e-12)
    assert not parts.model.table.weight.grad.is_coalesced()
    for p, q in zip(plain.model.parameters(), parts.model.parameters(), strict=True):
        same(p, q, atol=1e-9)


def test_a_gradient_that_is_not_finite_in_a_table_alone_returns_to_the_snapshot():
    run = mixed()
    next(run)

    def spoil(table):
        table.grad._values()[0, 0] = math.nan

    run.model.table.weight.register_post_accumulate_grad_hook(spoil)
    with pytest.raises(Diverged, match="its gradient is not finite"):
        next(run)
    assert run.step == 0


def test_a_loss_scaler_treats_a_table_like_all_other_weights():
    plain, scaled = mixed(), mixed()
    scaled.place.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    expected = [next(plain).nats for _ in range(8)]
    assert [next(scaled).nats for _ in range(8)] == pytest.approx(expected, abs=1e-5)
    before, scale = bits(scaled), scaled.place.scaler.get_scale()

    def overflow(table):
        table.grad._values()[0, 0] = math.inf

    scaled.model.table.weight.register_post_accumulate_grad_hook(overflow)
    assert not math.isfinite(next(scaled).grad_norm)
    after = bits(scaled)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert scaled.place.scaler.get_scale() == scale / 2


def test_a_move_between_two_steps_changes_no_number_of_a_run_with_a_table():
    plain, moved = mixed(), mixed()
    expected = [next(plain).nats for _ in range(6)]
    got = [next(moved).nats for _ in range(3)]
    moved.model.double()  # converts weights and gradients, as a move to another device does
    move_to("cpu", "float32", moved.model.float(), moved.optimizer, moved.recipe)
    assert moved.model.table.weight.grad.is_sparse
    assert got + [next(moved).nats for _ in range(3)] == expected


def test_a_trial_step_sees_that_the_gradient_of_a_table_is_not_finite():
    run = mixed()
    batch = run._draw_batch()[0]
    assert _trial_step(run.model, batch, "cpu", "float32")[1]
    backward = torch.nn.functional.embedding

    def spoilt(ids, weight, *options):
        y = backward(ids, weight, *options)
        if options[-1]:  # sparse
            y.register_hook(lambda gradient: gradient * math.nan)
        return y

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "embedding", spoilt)
        assert not _trial_step(run.model, batch, "cpu", "float32")[1]


def test_the_memory_of_another_optimizer_is_refused(tmp_path):
    run = trainer(optimizer="lion")
    next(run)
    for optimizer, reason in (
        ("adamw", r"'optimizer.0.exp_avg_sq' is missing"),
        ("lion-bfloat16", r"float32, expected .* torch.bfloat16"),
    ):
        run.recipe = replace(run.recipe, optimizer=optimizer)
        with pytest.raises(ValueError, match=reason):
            load(save(run, tmp_path / "run"))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_what_there_is_to_learn(name):
    lr = 1e-2 if name.startswith("lion") else 2e-2
    run = trainer(steps=150, lr=lr, optimizer=name)
    nats = [record.nats for record in run]
    assert sum(nats[-10:]) / 10 < FLOOR + 0.4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_decays_matrices_only(name):
    run = trainer(optimizer=name)
    decays = {p: g["weight_decay"] for g in run.optimizer.param_groups for p in g["params"]}
    assert {p: 0.1 if p.ndim == 2 else 0.0 for p in run.model.parameters()} == decays


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
