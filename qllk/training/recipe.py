"""What goes into a run and what comes out of it, as plain data: recipes and records.

Imports no torch.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import NamedTuple

from ..checks import check_fields, check_positive, check_range, check_rate, make_fields_plain


def _option(default, meaning: str):
    """A field with a description, which the command line shows as its help text."""
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Recipe:
    """How to train, as plain data. A run ends after `steps`, or after `seconds` if they are given.

    Raises   ValueError naming the invalid field
    """

    steps: int = _option(2000, "number of updates")
    seconds: float | None = None
    batch: int = _option(4, "windows per step")
    window: int = _option(
        1024, "ids per window; a model with a shorter context reads each window in several rows"
    )
    carry: int = _option(
        1,
        "for a model with a recall: in the last quarter of the run, read this many windows of a "
        "text one after another, each with what was recalled from those before",
    )
    documents: bool = _option(
        False, "keep the files of a folder apart where they share a row; for attention"
    )
    question: str = _option(
        "family",
        "what is asked: family, the question of the model's family; or of a text whose lines are "
        "two fields with a tab between them, pairs (an encoder-decoder writes the second field) or "
        "labels (an encoder tells it, a single byte)",
    )
    accumulate: int = _option(1, "number of micro-batches per step (gradient accumulation)")
    recompute: int = _option(
        0,
        "activation checkpointing: keep only the input of every nth block; 0 keeps all activations",
    )
    optimizer: str = _option("adamw", "adamw, adamw-bfloat16, lion, lion-bfloat16 or muon")
    lr: float = _option(6e-3, "peak learning rate")
    table_lr: float = _option(8.0, "learning rate of the rows of tables, as a multiple of lr")
    final_lr: float = _option(0.02, "learning rate at the end, as a fraction of the peak")
    warmup: float = _option(0.15, "warmup as a fraction of the run")
    weight_decay: float = _option(0.1, "weight decay of matrices")
    clip: float = _option(1.0, "maximum norm of the gradient")
    precision: str = _option("float32", "float32, bfloat16 or float16")
    matmul: str = _option(
        "native", "native, float8 (where the hardware supports it) or float8-simulated (anywhere)"
    )
    parallel: str = _option(
        "ddp", "with several processes: ddp, the whole model in each; or fsdp, a part in each"
    )
    device: str = _option("cpu", "cpu, cuda, cuda:1, … or mps")
    compile: bool = _option(False, "use torch.compile")
    seed: int = _option(0, "random seed of weights, windows and masks")
    validate_every: int = _option(200, "steps between two validations")
    validate_bytes: int = _option(
        1 << 16, "bytes of the held-out split per validation; final reports use the whole split"
    )

    def __post_init__(self):
        make_fields_plain(self)
        whole = (
            "steps",
            "batch",
            "window",
            "carry",
            "accumulate",
            "validate_every",
            "validate_bytes",
        )
        check_positive("Recipe", **{name: getattr(self, name) for name in whole})
        for name in ("lr", "table_lr", "clip"):
            check_rate(f"Recipe: {name}", getattr(self, name))
        if self.seconds is not None:
            check_rate("Recipe: seconds", self.seconds)
        largest = {"weight_decay": sys.float_info.max, "final_lr": 1.0, "warmup": 1.0}
        for name, most in largest.items():
            check_range(f"Recipe: {name}", getattr(self, name), int | float, most)
        check_range("Recipe: seed", self.seed, int, 2**63 - 1)
        check_range("Recipe: recompute", self.recompute, int, math.inf)
        names = dict.fromkeys(
            ("question", "device", "precision", "optimizer", "matmul", "parallel"), str
        )
        for name, kind in (names | {"compile": bool, "documents": bool}).items():
            if not isinstance(value := getattr(self, name), kind):
                raise ValueError(f"Recipe: {name} must be a {kind.__name__}, got {value!r}")
        check_micro_batches("Recipe", self.batch, self.accumulate)
        if self.carry > 1 and (self.accumulate > 1 or self.compile):
            raise ValueError(
                f"Recipe: carry={self.carry} cannot be combined with micro-batches or compile, "
                "since a step continues from the state of the one before; leave one out"
            )

    @classmethod
    def from_dict(cls, values) -> Recipe:
        return cls(**check_fields(cls, values))


def check_micro_batches(owner: str, batch: int, accumulate: int) -> None:
    """Refuse more micro-batches than rows."""
    if accumulate > batch:
        raise ValueError(
            f"{owner}: accumulate={accumulate} micro-batches need a row each, but batch={batch}"
        )


class Record(NamedTuple):
    """What one step did. `device` and `precision` are read from the step's tensors."""

    step: int  # steps done, this one included
    bytes_seen: int
    nats: float  # mean training loss per byte, before the update
    bits_per_byte: float
    valid_nats: float | None  # on the head of the held-out split, at steps that validate
    lr: float
    grad_norm: float  # before clipping
    step_seconds: float
    bytes_per_second: float
    state_rms: dict[str, float]  # RMS of each layer's state after a window, at the last probe
    rows_in_use: dict[str, float]  # share of a recall's rows, by context, after the same window
    state_bytes: int  # of the whole state then; 0 without one
    device: str
    precision: str
