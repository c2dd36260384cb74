"""Lesson 11's ledger: what was published about QLLK, each claim with its test."""

from __future__ import annotations

import ast
import inspect
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from ...model import kernels, masks
from ...model.families import build, count_parameters
from ...model.layers import GeluMLP
from ...model.mixers import SoftmaxAttention
from ...presets import PRESETS
from ...probes import baselines, evaluate, measure
from ...study import published
from ...study.figures import Bars
from ...study.race import Results, equal_bytes, make_trainer
from ...text.corpora import corpus
from ...text.windows import sample_windows
from ...training import devices
from ...training.recipe import Recipe
from .exercises.race import verdict
from .race import Scaling, holds_pairs, narrow

_HOLDS, _IN_PART, _DOES_NOT = "holds", "in part", "does not hold"
_GPU, _GPUS, _MAC_AND_PI = "needs a GPU", "needs two GPUs", "needs a Mac and a Pi"


@dataclass(frozen=True)
class Evidence:
    """What a learner's own notebook has measured by the end."""

    runs: Results  # "published", "without hash", "kernel", "control", "attention"
    as_written: list[float]  # bits per byte of the published model's seeds, nothing unread in sight
    noise: tuple[float, float]  # its bits on random bytes, as published and as written
    kernel: Scaling
    attention: Scaling
    recall: dict[str, dict[int, float]]


class _Claim(NamedTuple):
    """What was published, and how it is tested."""

    id: str
    says: str
    test: Callable[[Evidence], tuple[str, str]]  # -> verdict, what was measured


class Finding(NamedTuple):
    """A claim with its verdict, and the numbers behind it."""

    id: str
    says: str
    verdict: str
    measured: str


def findings(seen: Evidence) -> list[Finding]:
    """Every claim, tested on this machine."""
    with measure.single_thread():
        return [Finding(claim.id, claim.says, *claim.test(seen)) for claim in CLAIMS]


def _holds_if(true: bool, otherwise=_DOES_NOT) -> str:
    return _HOLDS if true else otherwise


def _speed_up(seen):
    """One layer as wide as the published one, its mixer exchanged, at 64 patches: 512 bytes."""
    layers = published.FusedKernel(256), SoftmaxAttention(256, heads=4)
    kernel, attention = ([_layer_operations(layer, n) for n in (64, 128)] for layer in layers)
    ratio = attention[0] / kernel[0]
    pair = (attention[1] - 2 * attention[0]) / (128**2 - 2 * 64**2)
    alone = attention[0] / 64 - 64 * pair
    far = (125 * kernel[0] / 64 - alone) / pair
    return _holds_if(ratio >= 100), (
        f"{ratio:.2f} times fewer operations at its own 64 patches; 125 times from {far:,.0f} on"
    )


def _layer_operations(mixer, length, width=256) -> int:
    x, mlp = torch.zeros(1, length, width), GeluMLP(width)
    return measure.count_flops(lambda: (mixer(x), mlp(x)))


def _ten_times_longer(seen):
    lengths, took, work, _ = seen.kernel
    more, longer = (10 ** measure.fit_exponent(lengths, ys).exponent for ys in (work, took))
    said = f"ten times the text: {more:.1f} times the operations, {longer:.1f} times the seconds"
    return _holds_if(9 <= more <= 11), said


def _operation_table(seen):
    ids = torch.zeros(1, 1000, dtype=torch.long)
    work = measure.count_flops(lambda: published.QLLK10()(ids))
    return _holds_if(
        work <= 2000
    ), f"{work / 1e9:.2f} billion operations for 1,000 bytes, not 1,000"


def size(seen):
    counts = [count_parameters(cls()) for cls in (published.QLLK10, published.QLLK11)]
    near = any(abs(count - 5.9e6) < 0.3e6 for count in counts)
    return _holds_if(near), f"1.0 has {counts[0]:,}, 1.1 has {counts[1]:,}"


def _speed_on_other_machines(seen):
    model, ids = published.QLLK10(), torch.zeros(1, 512, dtype=torch.long)
    took = measure.median_seconds(lambda: model(ids).sum().backward(), repeats=3)
    return _MAC_AND_PI, f"this machine, one core: {512 / took:,.0f} bytes a second"


def _performance_update(seen):
    models = published.QLLK11(), published.QLLK10()
    ids = torch.zeros(1, 512, dtype=torch.long)
    with torch.no_grad():
        work = [measure.count_flops(lambda: model(ids)) for model in models]  # noqa: B023
        took = [measure.median_seconds(lambda: model(ids), repeats=3) for model in models]  # noqa: B023
    ratio, longer = work[0] / work[1], took[0] / took[1]
    said = f"1.1 takes {ratio:.2f} times the operations of 1.0, here {longer:.1f} times the seconds"
    return _holds_if(ratio < 1), said


def _learns_noise(seen):
    leaky, written = seen.noise
    said = f"random bytes: {leaky:.2f} bits as published, {written:.2f} as written, floor 8.00"
    return _holds_if(written < 7.9), said


def _loss_on_noise(seen):
    nats = seen.noise[0] * evaluate.LN2
    said = f"random bytes: {nats:.2f} nats, where only a leak can be below {baselines.UNIFORM:.2f}"
    return _holds_if(nats >= baselines.UNIFORM - 0.05), said


def _fewer_linears(seen):
    first, second = published.QLLK10(dim=8), published.QLLK11(dim=8)
    whole = [_linears(model) for model in (first, second)]
    kernel = [_linears(first.layers[0][0]), _linears(second.layers[0]["kernel"])]
    said = (
        f"q, k, v 3 to 1; a kernel {kernel[0]} to {kernel[1]}; the model {whole[0]} to {whole[1]}"
    )
    return _holds_if(whole[1] <= 0.35 * whole[0], _IN_PART), said


def _linears(module) -> int:
    return sum(isinstance(part, torch.nn.Linear) for part in module.modules())


def _loading(seen):
    share = _drawing_share()
    wide = np.zeros(1024, np.uint8).astype(np.int64).nbytes / 1024
    said = f"drawing is {share:.2%} of a step: no bottleneck to remove; int64 takes {wide:.0f}x RAM"
    return _holds_if(share > 0.2, _IN_PART), said


@cache
def _drawing_share() -> float:
    """What part of a training step goes into drawing its windows."""
    text, rng = corpus("stdlib"), torch.Generator().manual_seed(0)
    draw = measure.median_seconds(lambda: sample_windows(text.train, 4, 128, rng), at_least=0.02)
    trainer = make_trainer(narrow(PRESETS["qllk-2-nano"], 32), text, Recipe(batch=4, window=128))
    return draw / measure.median_seconds(lambda: next(trainer), repeats=5)


def _long_context(seen):
    lengths, state = seen.kernel.lengths, seen.kernel.state
    pairs = holds_pairs(seen.recall["kernel"])
    said = f"{state[-1]:,} numbers after {lengths[-1]:,} bytes, but one layer holds {pairs} pairs"
    return _holds_if(state[0] == state[-1] and pairs > 1000, _IN_PART), said


def _accuracy(seen):
    written, attention = (
        statistics.fmean(found) for found in (seen.as_written, equal_bytes(seen.runs)["attention"])
    )
    said = f"1.1 as written {written:.2f} bits, attention {attention:.2f}, after equal bytes"
    return _holds_if(written <= 1.05 * attention), said


def _faster_patching(seen):
    x = torch.zeros(1, 256, 512)  # (B, D, T)
    conv = torch.nn.Conv1d(256, 256, 8, stride=8)
    with torch.no_grad():
        work = measure.count_flops(lambda: conv(x)) / 64
        took = [
            measure.median_seconds(one, at_least=0.02)
            for one in (lambda: conv(x), lambda: x.unflatten(2, (-1, 8)).mean(3))
        ]
    adds = 8 * 256
    said = (
        f"{work / adds:.0f} times the work of the mean, here {took[0] / took[1]:.0f}x its seconds"
    )
    return _holds_if(work < adds), said


def _larger_batches(seen):
    model = build(narrow(PRESETS["qllk-2-nano"], 32), seed=0)
    took = [
        measure.median_seconds(lambda: model(torch.zeros(B, 128, dtype=torch.long)), repeats=3)  # noqa: B023
        for B in (4, 64)
    ]
    gain = 16 * took[0] / took[1]
    said = f"16 times the batch, {gain:.1f} times the bytes a second on one core"
    return _holds_if(gain > 12), said


def _half_precision(seen):
    stuck = {
        name: next(2**n for n in range(1, 20) if _stands_still(2.0**n, dtype))
        for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16))
    }
    return _GPU, "a sum of ones stops at " + ", ".join(f"{n:,} in {d}" for d, n in stuck.items())


def _stands_still(value, dtype) -> bool:
    x = torch.tensor(value, dtype=dtype)
    return bool(x + 1 == x)


def _several_devices(seen):
    return (
        _GPUS,
        f"found by trying here: {', '.join(device.name for device in devices.available())}",
    )


def _loader_workers(seen):
    return _GPU, f"on the CPU workers could win {_drawing_share():.2%} of a step at most"


def _lightweight(seen):
    models = [cls() for cls in (published.QLLK10, published.QLLK11)]
    weights = [4 * count_parameters(model) / 1e6 for model in models]
    ids = torch.zeros(1, 512, dtype=torch.long)
    with torch.no_grad():
        peak = max(measure.trace_memory(lambda: m(ids)).peak_bytes for m in models) / 1e6  # noqa: B023
    said = f"{weights[0]:.0f} and {weights[1]:.0f} MB of weights, {peak:.1f} MB to read 512 bytes"
    return _holds_if(max(weights) + peak < 64), said


def _short_source(seen):
    versions = (
        (published.QLLK10, published.SeparateKernel),
        (published.QLLK11, published.FusedKernel),
    )
    lines = [sum(map(code_lines, classes)) for classes in versions]
    return _holds_if(max(lines) <= 77), f"{lines[0]} and {lines[1]} lines in our copy"


def code_lines(thing) -> int:
    """Lines of source without blank ones, comments and docstrings."""
    source = inspect.getsource(thing)
    words = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = enumerate(map(str.strip, source.splitlines()), 1)
    return sum(bool(line) and not line.startswith("#") and n not in words for n, line in lines)


def hashing(seen):
    model = published.QLLK11(dim=8)
    model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    learned = bool(model.hash_proj.grad.abs().sum() > 0)
    by_bytes = equal_bytes(seen.runs)
    word = verdict(by_bytes["published"], by_bytes["without hash"])
    said = f"a {'learned' if learned else 'fixed'} matrix, no hash; with it against without: {word}"
    return _holds_if(not learned), said


def _gate(seen):
    """Open and close the gate of one mixer: what changes, the output or the memory?"""
    mixer = build(PRESETS["qllk-2-nano"], seed=0).body.path.trunk.blocks[0].mix
    x = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y, state = mixer(x)
        mixer.qkvg.weight[3 * 64 :] = 0.0
        other, kept = mixer(x)
    output, memory = bool((y != other).any()), bool((state.S != kept.S).any())
    said = f"another gate changes the output: {output}; what is remembered: {memory}"
    return (_IN_PART if output and not memory else _holds_if(output)), said


def _replaces_attention(seen):
    q, k, v = torch.randn(3, 1, 16, 4, generator=torch.Generator().manual_seed(0)).double()
    mask = masks.causal_mask(16, 16)[..., None]
    table = q[:, :, None] * k[:, None] * mask  # (1, T, T, D heads)
    gap = ((table * v[:, None]).sum(2) - kernels.cumsum_kernel(q, k, v)[0]).abs().max().item()
    said = f"masked scores without softmax, heads of width one: equal within 1e-9: {gap < 1e-9}"
    return _holds_if(gap < 1e-9), said


CLAIMS = (
    _Claim("L01", "125 times faster than attention", _speed_up),
    _Claim("L02", "ten times longer is ten times slower", _ten_times_longer),
    _Claim("L03", "1,000 operations for 1,000 tokens", _operation_table),
    _Claim("L04", "5.9 million parameters", size),
    _Claim("L05", "85,547 and 8,198 tokens a second", _speed_on_other_machines),
    _Claim("L06", "1.1 is a major speed update", _performance_update),
    _Claim("L07", "loss 5.72 to 5.67: it learns", _learns_noise),
    _Claim("L08", "loss 2.92 to 2.80 on 68 MB", _loss_on_noise),
    _Claim("L09", "66 % fewer linear layers", _fewer_linears),
    _Claim("L10", "mapped files remove the data bottleneck", _loading),
    _Claim("L11", "infinite context, 100K tokens and more", _long_context),
    _Claim("L12", "about 5 % less accurate than attention", _accuracy),
    _Claim("L13", "patches by Conv1d are faster", _faster_patching),
    _Claim("L14", "larger batches, proportional gains", _larger_batches),
    _Claim("L15", "float16 on CUDA, float32 on Apple's GPU", _half_precision),
    _Claim("L16", "finds its devices, uses several GPUs", _several_devices),
    _Claim("L17", "8 loader workers on CUDA, 0 elsewhere", _loader_workers),
    _Claim("L18", "light enough for small machines", _lightweight),
    _Claim("L19", "about 70 lines", _short_source),
    _Claim("L19a", "feature hashing gives shortcuts", hashing),
    _Claim("L19b", "the gate controls what flows", _gate),
    _Claim("L19c", "a running sum replaces the table", _replaces_attention),
)


def verdict_lines(found: list[Finding]) -> list[str]:
    return [f"{f.id:5} {f.says:41} {f.verdict}" for f in found]


def verdict_bars(found: list[Finding]) -> Bars:
    """How many claims got which verdict; a machine that is missing is one verdict."""
    kinds = [f.verdict if f.verdict in (_HOLDS, _IN_PART, _DOES_NOT) else "untested" for f in found]
    counts = {kind: kinds.count(kind) for kind in (_HOLDS, _IN_PART, _DOES_NOT, "untested")}
    return Bars(f"{len(found)} published claims", counts, "claims")
