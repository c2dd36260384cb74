"""Lesson 14, Look through a window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ...checks import build_part
from ...model import kernels
from ...model.families import count_parameters, sketch
from ...model.masks import Mask, causal_mask
from ...model.mixers import MIXERS
from ...model.positions import Rotary
from ...presets import PRESETS
from ...probes import state_numbers
from ...spec import Part, Spec
from ...study.figures import Bars, Heat, Note
from ..explore import explorer, slider
from ..ledger import DOES_NOT, IN_PART, UNTESTED, Claim, holds_if

# ---------------------------------------------------------------- what is trained

_FULL: Part = ("softmax", {"heads": 2})
_WINDOWED: Part = ("softmax", {"heads": 2, "window": 4, "sinks": 1})
_LATENT: Part = (
    "latent",
    {"heads": 2, "d_latent": 16, "d_nope": 8, "d_rope": 8, "d_value": 16, "norm": "layer"},
)
# Three layers each. SWA-MLA has two windows for each latent layer.
MODELS: dict[str, tuple[Part, ...]] = {
    "all keys": (_FULL,) * 3,
    "latents": (_LATENT,) * 3,
    "windows of 4": (("softmax", {"heads": 2, "window": 4}),) * 3,
    "windows of 1": (("softmax", {"heads": 2, "window": 1}),) * 3,
    "SWA-MLA": (_WINDOWED, _WINDOWED, _LATENT),
    "SWA, full": (_WINDOWED, _WINDOWED, _FULL),
}


def model_of(mixers: tuple[Part, ...]) -> Spec:
    """A small model with one block for each mixer."""
    return Spec(d_model=32, layers=len(mixers), mixers=mixers, positions="rotary")


# ---------------------------------------------------------------- what is kept

# One layer of each kind, of the width and the heads of a small model.
KINDS: dict[str, Part] = {
    "all keys": ("softmax", {"heads": 8}),
    "keys of two heads": ("softmax", {"heads": 8, "kv_heads": 2}),
    "latents": ("latent", {"heads": 8, "d_latent": 32, "d_nope": 16, "d_rope": 16, "d_value": 16}),
    "a window of 64 and 4 sinks": ("softmax", {"heads": 8, "window": 64, "sinks": 4}),
    "a matrix (lesson 02)": ("linear", {"heads": 8}),
}


def kept_numbers(kind: str, steps: int, width: int = 128) -> int:
    """How many numbers one layer keeps after so many steps, counted in its state."""
    mixer = build_part(MIXERS, KINDS[kind], "mixer", (width, Rotary(width)))
    with torch.no_grad():
        return state_numbers(mixer(torch.zeros(1, steps, width))[1])


# ---------------------------------------------------------------- as published

Attend = Callable[[Tensor, Tensor, Tensor, int, int], Tensor]  # q, k, v, window, sinks


def published_attention(q: Tensor, k: Tensor, v: Tensor, window: int, sinks: int) -> Tensor:
    """Windowed attention as the original has it: causal, and the window is never used."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def our_attention(q: Tensor, k: Tensor, v: Tensor, window: int, sinks: int) -> Tensor:
    return kernels.causal_attention(q, k, v, Mask(window=window, sinks=sinks))


def published_rotation(x: Tensor) -> Tensor:
    """Rotary positions as the original applies them to (B,H,T,K) in its latent attention: the axes
    of heads and of time are swapped, so that a head turns by its number.
    """
    return Rotary(x.shape[-1]).rotate(x.transpose(1, 2), 0).transpose(1, 2)


def our_rotation(x: Tensor) -> Tensor:
    return Rotary(x.shape[-1]).rotate(x, 0)


def keys_seen(attend: Attend, T: int, window: int, sinks: int) -> list[int]:
    """How many keys each of T queries sees, by the weights that it gives them."""
    rng = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, T, 4, generator=rng, dtype=torch.float64)
    values = torch.eye(T, dtype=torch.float64)[None, None]  # so that the output is the weights
    return (attend(q, k, values, window, sinks)[0, 0] != 0).sum(dim=1).tolist()


def turns_with_time(rotate: Callable[[Tensor], Tensor]) -> bool:
    """Whether the same vector at two places comes out differently, and in two heads alike."""
    x = torch.ones(1, 2, 4, 8, dtype=torch.float64)
    turned = rotate(x)
    differs = not torch.allclose(turned[:, :, 0], turned[:, :, 3])
    return differs and torch.allclose(turned[:, 0], turned[:, 1])


# ---------------------------------------------------------------- claims


def _counted(preset: str) -> int:
    return count_parameters(sketch(PRESETS[preset]))


@dataclass(frozen=True)
class Evidence:
    """What the tests look at: by default, what was published, rebuilt.

    attend     windowed attention
    rotate     positions for queries (B,H,T,K)
    latents    numbers that a latent layer keeps for each step while it writes
    usual      numbers that all keys and values would take
    counted    parameters of a preset
    sizes      the published sizes, by preset
    """

    attend: Attend = published_attention
    rotate: Callable[[Tensor], Tensor] = published_rotation
    latents: int | None = None  # the original keeps nothing, and reads all again for each step
    usual: int = 2 * 128
    counted: Callable[[str], int] = _counted
    sizes: Mapping[str, float] = field(
        default_factory=lambda: {
            "swa-mla-small": 125e6,
            "swa-mla-base": 400e6,
            "swa-mla-large": 700e6,
            "swa-mla-xl": 2e9,
        }
    )


OURS = Evidence(our_attention, our_rotation, latents=48)


def _sizes(seen):
    ratios = {name: seen.counted(name) / size for name, size in seen.sizes.items()}
    near = [0.9 < ratio < 1.1 for ratio in ratios.values()]
    said = ", ".join(f"{ratio:.1f}" for ratio in ratios.values())
    return holds_if(all(near), IN_PART if any(near) else DOES_NOT), f"{said} times the claim"


def _memory(seen):
    weights = seen.counted("swa-mla-base")
    adamw, lion = (weights * numbers * 4 / 1e9 for numbers in (4, 3))  # weights, gradients, moments
    saved = adamw - lion
    said = f"Lion saves {saved:.1f} GB of {adamw:.1f}, the table says 6"
    return holds_if(abs(saved - 6) < 1), said


def _window_acts(seen):
    counts = keys_seen(seen.attend, 32, 4, 2)
    wanted = [min(t + 1, 4 + 2) for t in range(32)]
    return holds_if(
        counts == wanted
    ), f"a window of 4 and 2 sinks: the last query sees {counts[-1]}"


def _compresses(seen):
    if seen.latents is None:
        return IN_PART, "it could; the original keeps no latents, and reads all again for each step"
    ratio = seen.usual / seen.latents
    return holds_if(ratio > 2), f"{ratio:.1f} times fewer numbers for each step"


def _positions(seen):
    acts = turns_with_time(seen.rotate)
    return holds_if(acts), f"turns by the place, the same in every head: {acts}"


def _tested(seen):
    acts = {"window": _window_acts(seen)[0], "positions": _positions(seen)[0]}
    said = ", ".join(f"{name}: {word}" for name, word in acts.items())
    return holds_if(set(acts.values()) == {"holds"}), f"its tests assert no value; {said}"


def _speed(seen):
    return UNTESTED, "takes four H100; no preset of the stated size exists"


CLAIMS = (
    Claim("L20", "sizes of 125M, 400M, 700M and 2B", _sizes),
    Claim("L22", "180,000 tokens a second on four GPUs", _speed),
    Claim("L23", "24 GB with AdamW, 18 GB with Lion", _memory),
    Claim("L27", "a window of W, with sinks, is used", _window_acts),
    Claim("L28", "latents compress the memory", _compresses),
    Claim("L29", "rotary positions in every layer", _positions),
    Claim("L34", "all tests pass: ready for production", _tested),
)


# ---------------------------------------------------------------- widget


def kept_bars(steps: int) -> Bars:
    """What one layer of each kind keeps after so many steps."""
    values = {kind: kept_numbers(kind, steps) for kind in KINDS}
    return Bars(f"kept after {steps:,} steps", values, "numbers")


@explorer(
    "How many layers does it take until the last byte hears of the first?",
    window=slider("window", [2, 3, 4, 6, 8]),
    sinks=slider("sinks", [0, 1, 2]),
    layers=slider("layers", [1, 2, 3, 5]),
)
def reach(window: int = 4, sinks: int = 0, layers: int = 1):
    """Who sees whom through a stack of windows, and what each layer keeps."""
    T = 16
    once = causal_mask(T, T, window, sinks).double()
    through = torch.linalg.matrix_power(once, layers) > 0
    names = [str(t) for t in range(T)]
    colours = through.double() * 0.35 + 0.65 * once  # darker where one layer is enough
    first = int(through[-1].nonzero().min())
    kept = min(T, window - 1 + sinks)
    said = f"the last of {T} steps sees back to step {first}, and each layer keeps {kept} steps"
    title = f"window {window}, sinks {sinks}, layers {layers}"
    return [
        Heat(title, colours.tolist(), names, names, most=1.0, said=f"{title}: {said}"),
        Note("Dark: in one layer. Light: through several", [f"{said[0].upper()}{said[1:]}."]),
    ]
