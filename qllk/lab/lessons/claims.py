"""Lesson 11's ledger: what was published about QLLK, each claim with its test.

A test is tried on models for which the right verdict is known before it judges the published one:
whatever it looks at is in `Evidence`, and `tests/test_claims.py` puts other models there.
"""

from __future__ import annotations

import ast
import inspect
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from ...model import kernels, masks
from ...model.families import count_parameters
from ...model.layers import GeluMLP
from ...model.mixers import SoftmaxAttention
from ...probes import baselines, measure
from ...study import published
from ...text.corpora import corpus
from ...text.windows import sample_windows
from ...training import devices
from ..ledger import DOES_NOT, IN_PART, UNTESTED, Claim, holds_if
from ..minimize import minimize
from .exercises.race import verdict
from .race import Bits

_ENOUGH = 100  # seconds of training, from which on a comparison of two models counts
_FOUND = 0.5  # the share of far digits from which on a model remembers; chance is 0.1

Make = Callable[..., nn.Module]


def _published_state(length: int) -> int:
    """The size of the state of QLLK 1.1 after reading `length` bytes, in numbers."""
    model, patches = published.QLLK11(), torch.zeros(1, length // 8, 256)
    states = []
    for layer in model.layers:
        q, k, v = layer["kernel"].qkv_proj(patches).chunk(3, dim=-1)
        states.append(kernels.cumsum_kernel(q, k, v)[1])
    return sum(S.numel() for S in states)


@dataclass(frozen=True)
class Evidence:
    """What the tests look at. The last fields are the published code and numbers themselves.

    bits       bits per byte without a leak: "published", "without hash", "attention"
    seconds    of training of each of these runs
    noise      nats per byte on random bytes, after training on random bytes
    found      the share of digits found that were stated more than 4,096 bytes ago
    ten_steps  the losses in nats that were published as a proof of learning, first and last
    state      maps a length in bytes to the size of the state after reading them, in numbers
    patches    the length at which speeds are compared
    device     where batches are compared, None where there is no GPU
    """

    bits: Bits
    seconds: float
    noise: float
    found: float
    ten_steps: tuple[float, float] = (5.72, 5.67)
    first: Make = published.QLLK10
    second: Make = published.QLLK11
    kernel: Make = published.FusedKernel
    state: Callable[[int], int] = _published_state
    draw: Callable[..., Tensor] = sample_windows
    patches: int = 64
    device: str | None = "cuda" if torch.cuda.is_available() else None


# ---------------------------------------------------------------- speed


def _operations(make: Make, *shape: int, dtype=torch.long) -> int:
    """Floating-point operations of one forward pass; counted, so nothing is computed."""
    with torch.device("meta"), torch.no_grad():
        model, x = make(), torch.zeros(shape, dtype=dtype)
        return measure.count_flops(lambda: model(x))


def speed_up(seen: Evidence) -> tuple[str, str]:
    """A layer with the kernel against one with attention, as wide as the published ones."""

    def operations(mixer, length):
        shape = 1, length, 256
        return _operations(
            lambda: nn.Sequential(mixer(256), GeluMLP(256)), *shape, dtype=torch.float32
        )

    once, twice = (operations(_Attention, length) for length in (64, 128))
    pair = (twice - 2 * once) / (128**2 - 2 * 64**2)  # of two patches
    alone = once / 64 - 64 * pair  # of a patch
    own = operations(seen.kernel, 64) / 64
    ratio = (alone + pair * seen.patches) / own
    return holds_if(ratio >= 100), (
        f"{ratio:.2f} times fewer operations at {seen.patches:,} patches; "
        f"125 times from {(125 * own - alone) / pair:,.0f} on"
    )


class _Attention(SoftmaxAttention):
    """Softmax attention without its state."""

    def __init__(self, width: int):
        super().__init__(width, heads=4)

    def forward(self, x):
        return super().forward(x)[0]


def _ten_times_longer(seen):
    short, long = (_operations(seen.second, 1, length) for length in (2048, 20480))
    ratio = long / short
    return holds_if(9 <= ratio <= 11), f"ten times the text: {ratio:.1f} times the operations"


def _operation_table(seen):
    work = _operations(seen.first, 1, 1000)
    return holds_if(work <= 2000), f"{work / 1e9:.2f} billion operations for 1,000 bytes"


def _speed_on_other_machines(seen):
    model, ids = seen.first(), torch.zeros(1, 512, dtype=torch.long)
    took = measure.median_seconds(lambda: model(ids).sum().backward(), repeats=3)
    return UNTESTED, f"takes a Mac and a Pi 5; one core here trains {512 / took:,.0f} bytes/s"


def _performance_update(seen):
    models, ids = (seen.second(), seen.first()), torch.zeros(1, 512, dtype=torch.long)
    took = measure.compare_seconds([lambda m=m: m(ids) for m in models])
    ratio = _operations(seen.second, 1, 512) / _operations(seen.first, 1, 512)
    said = f"1.1 takes {ratio:.2f} times the operations of 1.0"
    return holds_if(ratio < 1), f"{said}, here {took[0] / took[1]:.1f} times the seconds"


def _faster_patching(seen):
    fold, x = seen.second().patch_encoder, torch.zeros(1, 256, 512)  # (B, D, T)
    mean = nn.AvgPool1d(8)
    took = measure.compare_seconds([lambda: fold(x), lambda: mean(x)])
    with torch.no_grad():
        work = measure.count_flops(lambda: fold(x)) / 64
    said = f"{work / (8 * 256):.0f} times the work of the mean of 1.0"
    return holds_if(work <= 8 * 256), f"{said}, here {took[0] / took[1]:.0f} times its seconds"


def _larger_batches(seen):
    if seen.device is None:
        return UNTESTED, "takes a GPU: bytes a second with batches of 4 and of 64"
    model = seen.second().to(seen.device)

    def read(batch):
        model(torch.zeros(batch, 512, dtype=torch.long, device=seen.device))
        devices.synchronize(torch.device(seen.device))

    with torch.no_grad():
        took = [measure.median_seconds(lambda B=B: read(B)) for B in (4, 64)]
    gain = 16 * took[0] / took[1]
    return holds_if(gain > 12), f"16 times the batch, {gain:.1f} times the bytes a second"


# ---------------------------------------------------------------- learning


def ten_steps(model: nn.Module, draw: Callable[[], Tensor]) -> tuple[float, float]:
    """The first and the last loss in nats of ten steps, each on fresh ids (B,T+1)."""

    def loss_of(step):
        ids = draw().long()
        return nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    losses = minimize(model, loss_of, 10)
    return losses[0], losses[-1]


def random_bytes() -> Tensor:
    """Four rows of 128 fresh random bytes, and one more to predict."""
    return torch.randint(256, (4, 129))


def _learns(seen):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        here = ten_steps(seen.first(), random_bytes)
    said = f"blind guessing costs {baselines.UNIFORM:.2f}; it was ten steps on random bytes"
    return (
        holds_if(seen.ten_steps[1] < baselines.UNIFORM),
        f"{said}, here {here[0]:.2f} to {here[1]:.2f}",
    )


def _loss_without_leak(seen):
    said = f"{seen.noise:.2f} nats on random bytes; without a leak at least {baselines.UNIFORM:.2f}"
    return holds_if(seen.noise >= baselines.UNIFORM - 0.05), said


def accuracy(seen: Evidence) -> tuple[str, str]:
    """Both without a leak, after the same bytes; short runs decide nothing."""
    mine, theirs = (statistics.fmean(seen.bits[name]) for name in ("published", "attention"))
    said = f"{mine:.2f} bits without its leak, attention {theirs:.2f}"
    if seen.seconds < _ENOUGH:
        return UNTESTED, f"takes a search and {_ENOUGH} s each; after {seen.seconds:.0f} s, {said}"
    return holds_if(mine <= 1.05 * theirs), said


def _long_context(seen):
    short, long = (seen.state(length) for length in (1024, 8192))
    said = f"{long:,} numbers at any length" if short == long else f"{long / short:.0f}x the state"
    said += f"; of digits over 4,096 bytes back it finds {seen.found:.0%}, chance is 10%"
    return holds_if(
        short == long and seen.found > _FOUND, IN_PART if short == long else DOES_NOT
    ), said


def _hashing(seen):
    word = verdict(seen.bits["published"], seen.bits["without hash"])
    said = f"a learned matrix, nothing is hashed; with it against without it: {word}"
    return holds_if(word == "ahead"), said


def _gate(seen):
    """Close the gate for one patch: does its own output change, and does a later one?"""
    rng = torch.Generator().manual_seed(0)
    mixer, x, at = seen.kernel(8), torch.randn(1, 8, 8, generator=rng), 3
    with torch.no_grad():
        usual = mixer(x)
        mixer.gate_proj.register_forward_hook(
            lambda _, __, y: y.index_fill(1, torch.tensor(at), -99)
        )
        changed = (mixer(x) != usual).any(dim=-1)[0]
    output, memory = bool(changed[at]), bool(changed[at + 1 :].any())
    said = f"a closed gate changes the output: {output}; what is remembered: {memory}"
    return (IN_PART if output and not memory else holds_if(output)), said


# ---------------------------------------------------------------- size, form and machines


def _size(seen):
    counts = [count_parameters(make()) for make in (seen.first, seen.second)]
    near = any(abs(count - 5.9e6) < 0.3e6 for count in counts)
    return holds_if(near), f"1.0 has {counts[0]:,}, 1.1 has {counts[1]:,}"


def _fewer_linears(seen):
    whole = [_linears(make(dim=8)) for make in (seen.first, seen.second)]
    said = f"q, k, v 3 to 1; in a kernel 4 to 2; in the model {whole[0]} to {whole[1]}"
    return holds_if(whole[1] <= 0.35 * whole[0], IN_PART), said


def _linears(module) -> int:
    return sum(isinstance(part, nn.Linear) for part in module.modules())


def _loading(seen):
    share = _drawing_share(seen.draw, seen.second)
    wide = np.zeros(1024, np.uint8).astype(np.int64).nbytes / 1024
    said = f"drawing is {share:.2%} of a step: no bottleneck to remove; int64 takes {wide:.0f}x RAM"
    return holds_if(share > 0.2, IN_PART), said


@cache
def _drawing_share(draw, make) -> float:
    """What part of a training step goes into drawing its windows."""
    text, rng, model = corpus("stdlib").train, torch.Generator().manual_seed(0), make()
    ids = sample_windows(text, 4, 128, rng)[:, :-1].long()
    drawing = measure.median_seconds(lambda: draw(text, 4, 128, rng), at_least=0.02)
    learning = measure.median_seconds(lambda: model(ids).sum().backward(), repeats=3)
    return drawing / (drawing + learning)


def _half_precision(seen):
    stuck = {
        name: next(2**n for n in range(1, 20) if _stands_still(2.0**n, dtype))
        for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16))
    }
    said = ", ".join(f"{n:,} in {d}" for d, n in stuck.items())
    return UNTESTED, f"takes a GPU; a sum of ones stops at {said}"


def _stands_still(value, dtype) -> bool:
    x = torch.tensor(value, dtype=dtype)
    return bool(x + 1 == x)


def _several_devices(seen):
    found = ", ".join(device.name for device in devices.available())
    return UNTESTED, f"takes two GPUs; found by trying here: {found}"


def _loader_workers(seen):
    share = _drawing_share(seen.draw, seen.second)
    return UNTESTED, f"takes a GPU; on the CPU workers could win {share:.2%} of a step at most"


def _lightweight(seen):
    models = [make() for make in (seen.first, seen.second)]
    weights = [4 * count_parameters(model) / 1e6 for model in models]
    ids = torch.zeros(1, 512, dtype=torch.long)
    with torch.no_grad():
        peak = max(measure.trace_memory(lambda m=m: m(ids)).peak_bytes for m in models) / 1e6
    said = f"{weights[0]:.0f} and {weights[1]:.0f} MB of weights, {peak:.1f} MB to read 512 bytes"
    return holds_if(max(weights) + peak < 64), said


def _short_source(seen):
    first = code_lines(seen.first) + code_lines(published.SeparateKernel)
    second = code_lines(seen.second) + code_lines(seen.kernel)
    return holds_if(max(first, second) <= 77), f"{first} and {second} lines in our copy"


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


def _replaces_attention(seen):
    q, k, v = torch.randn(3, 1, 16, 4, generator=torch.Generator().manual_seed(0)).double()
    mask = masks.causal_mask(16, 16)[..., None]
    table = q[:, :, None] * k[:, None] * mask  # (1, T, T, D heads)
    gap = ((table * v[:, None]).sum(2) - kernels.cumsum_kernel(q, k, v)[0]).abs().max().item()
    said = f"masked scores without softmax, heads of width one: equal within 1e-9: {gap < 1e-9}"
    return holds_if(gap < 1e-9), said


CLAIMS = (
    Claim("L01", "125 times faster than attention", speed_up),
    Claim("L02", "ten times longer is ten times slower", _ten_times_longer),
    Claim("L03", "1,000 operations for 1,000 tokens", _operation_table),
    Claim("L04", "5.9 million parameters", _size),
    Claim("L05", "85,547 and 8,198 tokens a second", _speed_on_other_machines),
    Claim("L06", "1.1 is a major speed update", _performance_update),
    Claim("L07", "loss 5.72 to 5.67: it learns", _learns),
    Claim("L08", "loss 2.92 to 2.80 on 68 MB: it learns", _loss_without_leak),
    Claim("L09", "66 % fewer linear layers", _fewer_linears),
    Claim("L10", "mapped files remove the data bottleneck", _loading),
    Claim("L11", "infinite context, 100K tokens and more", _long_context),
    Claim("L12", "about 5 % less accurate than attention", accuracy),
    Claim("L13", "patches by Conv1d are faster", _faster_patching),
    Claim("L14", "larger batches, proportional gains", _larger_batches),
    Claim("L15", "float16 on CUDA, float32 on Apple's GPU", _half_precision),
    Claim("L16", "finds its devices, uses several GPUs", _several_devices),
    Claim("L17", "8 loader workers on CUDA, 0 elsewhere", _loader_workers),
    Claim("L18", "light enough for small machines", _lightweight),
    Claim("L19", "about 70 lines", _short_source),
    Claim("L19a", "feature hashing gives shortcuts", _hashing),
    Claim("L19b", "the gate controls what flows", _gate),
    Claim("L19c", "a running sum replaces the table", _replaces_attention),
)
