"""The costs of a model, measured without memory, equal formulas and those of real steps."""

import os
import subprocess
import sys
import time

import pytest
import torch
from helpers import TINY

from qllk.model.families import build, count_parameters
from qllk.presets import PRESETS
from qllk.probes import measure
from qllk.spec import Patch, Spec
from qllk.text import objectives
from qllk.text.corpora import task
from qllk.training import costs as costs_of
from qllk.training import devices, optim
from qllk.training.costs import _format_size, format_bytes, measure_costs, training_bytes
from qllk.training.recipe import Recipe
from qllk.training.trainer import Trainer

WINDOW, BATCH = Recipe.window, Recipe.batch
SMALL = ["qllk-2-nano", "gpt-nano", "bert-nano", "t5-nano", "swa-mla-nano", "randygpt-0.3"]


def window_of(spec, most):
    return min(most, spec.context or most)


@pytest.fixture(scope="module")
def table():
    """The costs of all presets, and the CPU seconds that measuring them took."""
    start = time.process_time()
    rows = {
        name: measure_costs(spec, window_of(spec, WINDOW), BATCH) for name, spec in PRESETS.items()
    }
    return rows, time.process_time() - start


@pytest.fixture(scope="module")
def costs(table):
    return table[0]


@pytest.mark.slow
def test_all_presets_are_measured_in_seconds(table):
    rows, seconds = table
    assert rows.keys() == PRESETS.keys()
    assert seconds < 90  # a fifth of it on two free cores


def test_parameters_are_those_of_the_model(costs):
    assert costs["gpt2"].parameters == 124_439_808
    assert costs["swa-mla-xl"].parameters == 8_578_479_104


def test_a_token_costs_two_operations_a_weight_and_the_attention_table(costs):
    D, layers, vocabulary = 768, 12, 50_257
    weights = 12 * D * D * layers + vocabulary * D
    assert costs["gpt2"].flops_per_token == 2 * weights + 4 * WINDOW * D * layers


def test_operations_do_not_depend_on_the_batch():
    one, many = (measure_costs("qllk-2-nano", 64, batch) for batch in (1, 8))
    assert one.flops_per_token == many.flops_per_token
    assert one.state_bytes == many.state_bytes
    assert one.training_bytes < many.training_bytes


def test_a_cache_grows_by_keys_and_values(costs):
    assert costs["gpt2"].state_bytes == 0
    assert costs["gpt2"].state_bytes_per_token == 4 * 2 * 768 * 12
    assert costs["randygpt-0.1"].state_bytes_per_token == 4 * 2 * 32 * 1  # in a context of 8


def test_the_state_of_qllk_2_does_not_grow(costs):
    D, R, layers = 128, 8, 3
    convolutions, sums, patches = layers * (8 - 1) * D, 2 * D, (2 * R - 1) * D
    assert costs["qllk-2"].state_bytes == 4 * (convolutions + sums + patches)
    assert costs["qllk-2"].state_bytes_per_token == 0
    assert costs["qllk-2-local"].state_bytes == 4 * convolutions


def test_windows_fill_up_and_latents_grow(costs):
    windows, latents, D, window, sinks = 8, 4, 768, 256, 4
    found = costs["swa-mla-small"]
    assert found.state_bytes == 4 * windows * 2 * D * (window - 1 + sinks)
    assert found.state_bytes_per_token == 4 * latents * (256 + 64)


def test_a_window_is_full_however_short_the_rows_are():
    short, long = (measure_costs("swa-mla-nano", window, 1) for window in (16, 300))
    for found in (short, long):
        assert found.state_bytes == 4 * 2 * 2 * 64 * (64 - 1 + 4)  # two layers, 64 wide
        assert found.state_bytes_per_token == 4 * (32 + 16)
    assert short.flops_per_token < long.flops_per_token


@pytest.mark.parametrize("window", [300, 4096, 5000])
@pytest.mark.parametrize("place", ["bytes", "folds", "patches", "folds on patches"])
def test_a_state_stops_growing_at_its_window_however_wide_it_is(window, place):
    softmax = ("softmax", {"heads": 1, "window": window, "sinks": 40})
    mixer = ("folded", {"size": 4, "mixer": softmax}) if "folds" in place else softmax
    if "patches" in place:
        patch = Patch(size=8, d_model=8, layers=1, mixers=(mixer,), after=0)
        spec = Spec(d_model=8, layers=1, mixers=(("conv", {"width": 1}),), patch=patch)
    else:
        spec = Spec(d_model=8, layers=1, mixers=(mixer,))
    found = measure_costs(spec, 16, 1)
    paths = (2 * 4 - 1) * 8 * ("folds" in place) + (2 * 8 - 1) * 8 * ("patches" in place)
    assert found.state_bytes_per_token == 0
    assert found.state_bytes == 4 * (2 * 8 * (window - 1 + 40) + paths)


def test_a_cache_on_patches_of_any_size_grows_by_its_share_of_a_token():
    folded = ("folded", {"size": 5, "mixer": ("softmax", {"heads": 1})})
    patch = Patch(size=3, d_model=8, layers=1, mixers=(folded,), after=0)
    conv = ("conv", {"width": 1})
    found = measure_costs(Spec(d_model=8, layers=1, mixers=(conv,), patch=patch), 16, 1)
    assert found.state_bytes_per_token == 4 * 2 * 8 / (3 * 5)
    assert found.state_bytes == 4 * 8 * ((2 * 5 - 1) + (2 * 3 - 1))


def test_a_context_of_a_single_patch_is_measured_as_far_as_it_goes():
    patch = Patch(size=8, d_model=8, layers=1, mixers=(("cumsum", {}),), after=0)
    fields = {"positions": "learned", "context": 8, "patch": patch}
    conv = ("conv", {"width": 1})
    found = measure_costs(Spec(d_model=8, layers=1, mixers=(conv,), **fields), 8, 1)
    assert found.state_bytes + 8 * found.state_bytes_per_token == 4 * 8 * (2 * 8 - 1 + 1)


def test_an_encoder_has_no_state(costs):
    assert costs["bert-base"].state_bytes is None
    assert costs["bert-base"].state_bytes_per_token is None


def test_an_encoder_decoder_keeps_its_source_and_what_it_wrote(costs):
    D, layers = 768, 12
    assert costs["t5-base"].state_bytes == 4 * 2 * D * layers * WINDOW
    assert costs["t5-base"].state_bytes_per_token == 4 * 2 * D * layers


@pytest.mark.parametrize(
    ("mixer", "grows"),
    [
        (("cumsum", {"half_lives": [1, 16]}), 0),
        (("linear", {"heads": 2, "decay": "channel"}), 0),
        (("delta", {"heads": 2, "decay": "head"}), 0),
        (("folded", {"size": 4, "mixer": ["softmax", {"heads": 2}]}), 4 * 2 * 16 / 4),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_every_kernel_is_counted_on_no_memory_as_it_is_on_a_cpu(mixer, grows):
    spec = Spec(d_model=16, layers=1, mixers=(mixer,))
    found = measure_costs(spec, 40, 2)
    model, ids = build(spec), torch.zeros(1, 40, dtype=torch.long)
    assert found.flops_per_token == measure.count_flops(lambda: model(ids)) / 40
    assert found.training_bytes == on_a_cpu(model, 40, 2)
    assert found.state_bytes_per_token == grows


# ---------------------------------------------------------------- memory to train


def batch_of(model, window, batch):
    """A function that computes the loss on zeros, after a source of zeros if the model has one."""
    ids = torch.zeros(batch, window, dtype=torch.long)
    inputs = (ids, ids) if model.spec.family == "encoder-decoder" else (ids,)
    return lambda: objectives.token_losses(model(*inputs), ids).mean()


def on_a_cpu(model, window, batch):
    """The sum that `training_bytes` counts, from real tensors."""
    kept = measure.saved_bytes(batch_of(model, window, batch))
    counters = 4 * len(list(model.parameters()))  # Adam counts its steps for each weight
    return 4 * 4 * count_parameters(model) + counters + kept


@pytest.mark.parametrize("name", SMALL)
def test_fake_tensors_keep_what_real_ones_keep(name):
    window = window_of(PRESETS[name], 128)
    assert training_bytes(name, window, 2) == on_a_cpu(build(name), window, 2)


@pytest.mark.parametrize("name", SMALL)
def test_a_real_step_takes_the_memory_that_was_counted(name):
    window = window_of(PRESETS[name], 128)
    model = build(name)
    loss = batch_of(model, window, BATCH)
    optimizer = optim.build_optimizer("adamw", model, lr=1e-3, weight_decay=0.1)

    def step():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    step()  # from now on the moments are there before a step begins
    optimizer.zero_grad()
    before = 3 * 4 * count_parameters(model)  # weights and moments
    real = before + measure.trace_memory(step).peak_bytes
    assert training_bytes(name, window, BATCH) == pytest.approx(real, rel=0.2)


def test_counting_changes_neither_random_numbers_nor_the_gradient_mode():
    before = torch.get_rng_state()
    with torch.no_grad():
        found = measure_costs("qllk-2-nano", 32, 1)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)
    assert found == measure_costs("qllk-2-nano", 32, 1)


def test_invalid_sizes_are_refused():
    with pytest.raises(ValueError, match="costs: window must be a whole number above 0, got 0"):
        measure_costs("qllk-2-nano", 0, 1)
    with pytest.raises(ValueError, match="costs: batch must be a whole number above 0, got -1"):
        measure_costs("qllk-2-nano", 8, -1)
    with pytest.raises(ValueError, match=r"reaches position 65, but .* end at 64"):
        measure_costs("randygpt-0.3", 65, 1)


# ---------------------------------------------------------------- as text


@pytest.mark.parametrize(
    ("number", "said"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 29, "1.5 GiB")],
)
def test_sizes_have_the_largest_unit_that_they_fill(number, said):
    assert format_bytes(number) == said


def test_a_size_beyond_the_units_keeps_the_last():
    assert _format_size(5e9, 1000, ("", "K", "M")) == "5000.0 M"


# ---------------------------------------------------------------- before a run

LIMITED = """
import resource, sys
from qllk import Recipe, Trainer
from qllk.text.corpora import task
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
run = Trainer("gpt-nano", task("markov", 20_000), Recipe(steps=3, batch=2, window=256))
next(run)
run.submit("batch", 10_000)
next(run)
print(run.batch, run.last_refusal)
try:
    Trainer("gpt-nano", task("markov", 20_000), Recipe(steps=3, batch=10_000, window=256))
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_batch_that_would_end_the_process_is_refused_in_words():
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "-c", LIMITED, str(12 << 30)]
    child = subprocess.run(script, env=env, capture_output=True, text=True, check=True)
    reason = "a step on 10,000 rows of 256 ids takes about "
    command, start = child.stdout.splitlines()
    assert command.startswith(f"2 batch 10000 was refused: {reason}")
    assert start.startswith(reason)
    assert "of memory free; use a smaller batch or window" in start


@pytest.mark.parametrize("batch", [2_000_000_000, 2**62])
def test_a_batch_beyond_all_memory_is_refused_at_once(batch):
    text = task("markov", 4000)
    with pytest.raises(ValueError, match=r"takes about [\d.]+ TiB, but cpu has"):
        Trainer("qllk-2-nano", text, Recipe(batch=batch, window=64))
    with pytest.raises(ValueError, match=r"takes about [\d.]+ TiB, but cpu has"):
        Trainer(torch.nn.Embedding(256, 256), text, Recipe(batch=batch, window=64))
    run = Trainer("qllk-2-nano", text, Recipe(batch=1, window=64))
    run.submit("batch", batch)
    assert next(run).step == 1
    assert run.batch == 1
    assert "of memory free; use a smaller batch" in run.last_refusal


def test_micro_batches_and_recomputing_make_a_batch_fit(monkeypatch):
    monkeypatch.setattr(devices, "free_bytes", lambda name: 200 << 20)
    text, sizes = task("markov", 4000), {"batch": 64, "window": 256}
    with pytest.raises(ValueError, match="a step on 64 rows of 256 ids"):
        Trainer("gpt-nano", text, Recipe(**sizes))
    for change in ({"accumulate": 32}, {"recompute": 1}, {"batch": 2}):
        Trainer("gpt-nano", text, Recipe(**sizes | change))


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_not_measured_because_it_is_small_is_small(name):
    spec = TINY[name]
    _, window = spec.split_window(64)
    more = training_bytes(spec, window, 5) - training_bytes(spec, window, 1)
    assert more <= costs_of._most_activations(spec, window, 4)


def test_the_memory_of_a_container_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "_CONTAINER", tmp_path)
    monkeypatch.setattr(devices, "_INTERPRETER_BYTES", 1 << 60)
    before = devices.free_bytes("cpu")
    (tmp_path / "memory.max").write_text("max\n")
    assert devices.free_bytes("cpu") > before / 2
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\nfile 90000000\n")
    assert devices.free_bytes("cpu") == 600_000
    (tmp_path / "memory.stat").write_text("anon 4000000\nfile 90000000\n")
    assert devices.free_bytes("cpu") == 0
