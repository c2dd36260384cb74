"""This machine offers what was tried and worked, and refuses the rest with a reason."""

import contextlib

import pytest
import torch
from helpers import SPEC

from qllk.text.corpora import task
from qllk.training import checkpoint, devices
from qllk.training.recipe import Recipe
from qllk.training.trainer import Trainer

CPU = {device.name: device for device in devices.available()}["cpu"]


def test_the_processor_is_always_there_last_and_in_float32():
    assert devices.available()[-1] == CPU
    assert CPU.precisions[0] == "float32"
    assert CPU.label.startswith(devices.describe_machine()["processor"])
    assert CPU.label.endswith(
        f"{torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)
    )


def test_every_offer_gives_what_it_promises():
    for device in devices.available():
        for precision in device.precisions:
            layer = torch.nn.Linear(4, 4).to(device.name)
            with devices.autocast(device.name, precision):
                y = layer(torch.ones(1, 4, device=device.name))
            assert str(y.dtype) == f"torch.{precision}"
            assert layer.weight.dtype == torch.float32


def test_what_is_not_offered_has_a_reason():
    for device in devices.available():
        for precision in devices.PRECISIONS:
            reason = devices._unavailable_reason(device.name, precision)
            assert (reason is None) == (precision in device.precisions)


def test_float16_on_the_processor_is_refused_with_its_reason():
    assert "CUDA only" in devices._unavailable_reason("cpu", "float16")
    with pytest.raises(
        ValueError, match=r"cpu cannot train in float16 \(.*CUDA only\); it offers float32"
    ):
        devices.require("cpu", "float16")


def test_a_precision_that_torch_quietly_replaces_is_not_offered(monkeypatch):
    monkeypatch.setattr(
        devices, "autocast", lambda name, precision: torch.autocast("cpu", enabled=False)
    )
    assert (
        devices._unavailable_reason("cpu", "bfloat16")
        == "asked for bfloat16, torch ran torch.float32"
    )
    assert {d.name: d.precisions for d in devices.available()}["cpu"] == ("float32",)


def test_a_precision_whose_probe_fails_is_not_offered(monkeypatch):
    def autocast(name, precision):
        if precision == "bfloat16":
            raise RuntimeError("no such instruction\nlong trace")
        return torch.autocast("cpu", enabled=False)

    monkeypatch.setattr(devices, "autocast", autocast)
    with pytest.raises(ValueError, match=r"cannot train in bfloat16 \(no such instruction\)"):
        devices.require("cpu", "bfloat16")


def test_a_device_that_is_listed_but_fails_is_not_offered(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 99)
    assert "cuda:98" not in {device.name for device in devices.available()}


def test_a_device_that_failed_once_is_offered_as_soon_as_it_works(monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(devices, "linear", lambda *args: raise_error("out of memory"))
        with pytest.raises(
            ValueError,
            match="a trial step on cpu fails: out of memory; this machine has none that works",
        ):
            devices.require("cpu", "float32")
    assert devices.require("cpu", "float32") == "cpu"


def raise_error(text):
    raise RuntimeError(text)


def test_trying_the_devices_draws_no_random_numbers():
    before = torch.get_rng_state()
    devices.available(), devices.fastest_precision("cpu")
    assert torch.equal(torch.get_rng_state(), before)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CONDITIONS = {
    "gradients are off": lambda: torch.set_grad_enabled(False),
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "another device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def short_run(path):
    """All that a short run, saved and resumed on the way, measures, and the types of its model."""
    recipe = Recipe(
        steps=9, batch=2, window=16, validate_every=2, validate_bytes=99, optimizer="muon"
    )
    run = Trainer(SPEC, task("markov", 2000), recipe)
    records = [next(run), next(run)]
    run = checkpoint.load(checkpoint.save(run, path))
    run.submit("batch", 3)
    records += [next(run), next(run)]
    weights = {(p.dtype, p.device) for p in run.model.parameters()}
    restored = [(p.dtype, p.device) for p in checkpoint.load_model(path)[0].parameters()]
    losses = [(r.nats, r.valid_nats, r.precision) for r in records]
    return losses, run.stream_losses(99)[0].tolist(), weights, set(restored)


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
def test_what_an_earlier_cell_has_set_changes_no_run(tmp_path, condition):
    expected = short_run(tmp_path / "run")
    with condition():
        assert short_run(tmp_path / "run") == expected


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
def test_what_an_earlier_cell_has_set_changes_no_offer(condition):
    with condition():
        assert CPU in devices.available()
        assert devices.fastest_precision("cpu") in CPU.precisions


def test_a_run_leaves_what_an_earlier_cell_has_set():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), devices.own_conditions():
            assert torch.ones(1).dtype == torch.float32
            assert not torch.is_inference_mode_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_require_gives_the_full_name():
    assert devices.require("cpu", "float32") == "cpu"
    assert devices.full_name("cuda") == "cuda:0"
    assert devices.full_name("cuda:1") == "cuda:1"


def test_an_unknown_device_lists_what_there_is():
    with pytest.raises(ValueError, match=r"no device 'tpu' here; this machine has .*cpu"):
        devices.require("tpu", "float32")


def test_an_unknown_precision_lists_the_known():
    with pytest.raises(ValueError, match=r"unknown precision 'float8'.*bfloat16, float16, float32"):
        devices.require("cpu", "float8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_without_cuda_the_message_says_so():
    with pytest.raises(ValueError, match="no device 'cuda:0' here; this machine has"):
        devices.require("cuda", "float32")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_comes_before_the_processor_and_has_a_name():
    first = devices.available()[0]
    assert first.name == "cuda:0"
    assert first.label == torch.cuda.get_device_name(0)
    assert {"float32", "float16"} <= set(first.precisions)


def test_the_fastest_precision_is_one_that_is_offered(monkeypatch):
    times = {"float32": 2.0, "bfloat16": 1.0}
    monkeypatch.setattr(devices, "_seconds", lambda name, precision: times[precision])
    expected = "bfloat16" if "bfloat16" in CPU.precisions else "float32"
    assert devices.fastest_precision("cpu") == expected
    with pytest.raises(ValueError, match="no device 'tpu' here; this machine has"):
        devices.fastest_precision("tpu")


def test_the_fastest_precision_of_cuda_is_that_of_its_first_device(monkeypatch):
    first = devices._Device("cuda:0", "a card", ("float32", "float16"))
    monkeypatch.setattr(devices, "available", lambda: (first, CPU))
    times = {("cuda:0", "float32"): 2.0, ("cuda:0", "float16"): 1.0}
    monkeypatch.setattr(devices, "_seconds", lambda *where: times[where])
    assert devices.fastest_precision("cuda") == "float16"


def test_keeping_freed_memory_never_fails(monkeypatch):
    assert devices.retain_freed_memory() in (True, False)
    devices.retain_freed_memory.cache_clear()
    monkeypatch.setattr(devices.sys, "platform", "darwin")
    assert devices.retain_freed_memory() is False
    devices.retain_freed_memory.cache_clear()


def test_what_torch_cannot_compile_is_told_in_one_sentence_before_training(monkeypatch):
    def fail(function):
        raise RuntimeError("No working C++ compiler found.\n#include <lots of C++>")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(ValueError, match="does not work on 'cpu' here: No working C") as caught:
        devices.check_compiler("cpu")
    assert "#include" not in str(caught.value)
    with pytest.raises(ValueError, match="C\\+\\+ compiler, or train without compile"):
        Trainer("qllk-2-nano", task("copy", 999), Recipe(window=32, compile=True))
