"""What goes into a run and what comes out, as plain data: its recipe, its commands, its records.

Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from ..checks import check_fields, check_positive, check_range, check_rate


def _option(default, meaning: str):
    """A field with its meaning, which the command line shows."""
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Recipe:
    """How to train, as plain data. A run ends after `steps`; given `seconds`, after these instead.

    Raises   ValueError naming the field that makes no sense
    """

    steps: int = _option(2000, "updates")
    seconds: float | None = None
    batch: int = _option(4, "windows per step")
    window: int = _option(1024, "ids; a model that reads fewer at once gets each in several rows")
    accumulate: int = _option(1, "a step's rows are worked through in this many parts")
    recompute: int = _option(0, "blocks of which autograd keeps only the first input; 0 keeps all")
    optimizer: str = _option("adamw", "or adamw-bfloat16, lion, lion-bfloat16")
    lr: float = _option(6e-3, "the peak")
    final_lr: float = _option(0.02, "share of the peak at the end")
    warmup: float = _option(0.15, "share of the run: a slow model is not warmed up for longer")
    weight_decay: float = _option(0.1, "of matrices")
    clip: float = _option(1.0, "largest norm of the gradient")
    precision: str = _option("float32", "or bfloat16, float16")
    matmul: str = _option(
        "native", "or float8 where the hardware has it, float8-simulated anywhere"
    )
    device: str = _option("cpu", "or cuda, cuda:1, mps")
    compile: bool = _option(False, "through torch.compile")
    seed: int = _option(0, "of weights, windows and masks")
    validate_every: int = _option(200, "steps")
    validate_bytes: int = _option(1 << 16, "of the held-out split, for the curve; reports use all")

    def __post_init__(self):
        whole = ("steps", "batch", "window", "accumulate", "validate_every", "validate_bytes")
        check_positive("Recipe", **{name: getattr(self, name) for name in whole})
        for name in ("lr", "clip"):
            check_rate(f"Recipe: {name}", getattr(self, name))
        if self.seconds is not None:
            check_rate("Recipe: seconds", self.seconds)
        for name, most in {"weight_decay": math.inf, "final_lr": 1.0, "warmup": 1.0}.items():
            check_range(f"Recipe: {name}", getattr(self, name), int | float, most)
        check_range("Recipe: seed", self.seed, int, 2**63 - 1)
        check_range("Recipe: recompute", self.recompute, int, math.inf)
        names = dict.fromkeys(("device", "precision", "optimizer", "matmul"), str)
        for name, kind in (names | {"compile": bool}).items():
            if not isinstance(value := getattr(self, name), kind):
                raise ValueError(f"Recipe: {name} must be a {kind.__name__}, got {value!r}")
        check_parts("Recipe: ", self.batch, self.accumulate)

    @classmethod
    def from_dict(cls, values) -> Recipe:
        return cls(**check_fields(cls, values))


def check_parts(what, batch, accumulate):
    if accumulate > batch:
        raise ValueError(
            f"{what}accumulate={accumulate} parts need a row each, and batch={batch} has fewer"
        )


def _check_name(value):
    if not isinstance(value, str):
        raise ValueError(f"a device or precision is named by a string, got {value!r}")


class Record(NamedTuple):
    """What one step did. `device` and `precision` are what really ran, read off the logits."""

    step: int  # how many steps are done, this one included
    bytes_seen: int
    nats: float  # mean loss of the step's bytes, before the update
    bits_per_byte: float
    valid_nats: float | None  # on the head of the held-out split, at the steps that measure it
    lr: float
    grad_norm: float  # before clipping
    step_seconds: float
    bytes_per_second: float
    state_rms: dict[str, float]  # of each layer's state at the end of a window, newest look
    device: str
    precision: str


COMMANDS = {
    "lr": lambda value: check_rate("learning rate", value),
    "batch": lambda value: check_positive("command", batch=value),
    "precision": _check_name,  # whether the machine has it is asked when its turn comes
    "device": _check_name,
}
