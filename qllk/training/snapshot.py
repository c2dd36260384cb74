"""A run as plain values: its tensors, and everything else as metadata that JSON can hold."""

from __future__ import annotations

import copy
import platform
from dataclasses import asdict
from typing import NamedTuple

import torch

from . import devices, optim, parallel
from .place import move_to

_COUNTERS = ("step", "bytes_seen", "seconds", "lr", "batch")


class Snapshot(NamedTuple):
    """The complete state of a run between two steps."""

    tensors: dict[str, torch.Tensor]  # on the CPU: "model.…" weights, "optimizer.…" moments
    metadata: dict  # what JSON can hold


def take_snapshot(trainer) -> Snapshot:
    """Copy the state of a Trainer between two steps."""
    found = {f"model.{name}": value for name, value in trainer.model.state_dict().items()}
    for index, state in trainer.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    whole = {name: optim.gather(value.detach()) for name, value in found.items()}
    tensors = {name: value.cpu().clone().contiguous() for name, value in whole.items()}
    corpus, place = trainer.corpus, trainer.place
    metadata = {
        "name": trainer.name,
        "spec": trainer.spec and trainer.spec.to_json(),
        "recipe": asdict(trainer.recipe),
        "corpus": {
            "source": corpus.source,
            "fingerprint": corpus.fingerprint,
            "tokenizer": corpus.tokenizer.to_json(),
            "bytes": corpus.source_bytes,
            "python": platform.python_version(),  # the corpus "stdlib" is its library
        },
        **{name: getattr(trainer, name) for name in _COUNTERS},
        # Several processes have a GPU each, so the file names none of them.
        "device": place.device if trainer.processes.world == 1 else place.device.split(":")[0],
        "precision": place.precision,
        "log": copy.deepcopy(trainer.log),
        "pending": [list(command) for command in list(trainer.pending)],
        "state_rms": dict(trainer.state_rms),
        "rows_in_use": dict(trainer.rows_in_use),
        "state_bytes": trainer.state_bytes,
        "scaler": place.scaler.state_dict(),
    }
    return Snapshot(tensors, metadata)


def restore_snapshot(trainer, snapshot: Snapshot) -> None:
    """Restore a Trainer to a snapshot without checks; `checkpoint.load` checks files.

    Pending commands of the trainer stay pending. A device or precision that this machine lacks is
    replaced by the CPU in float32, which `last_refusal` explains and the log records as commands.
    """
    tensors, metadata = snapshot
    weights, moments = {}, {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part == "model":
            weights[rest] = value
        else:
            index, _, key = rest.partition(".")
            moments.setdefault(int(index), {})[key] = value.clone()
    parts = trainer.model.state_dict()
    weights = {name: parallel.scatter(value, parts[name]) for name, value in weights.items()}
    trainer.model.load_state_dict(weights)
    trained = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    moments = {
        index: {key: parallel.scatter(value, trained[index]) for key, value in state.items()}
        for index, state in moments.items()
    }
    trainer.optimizer.load_state_dict(trainer.optimizer.state_dict() | {"state": moments})
    for name in _COUNTERS:
        setattr(trainer, name, metadata[name])
    trainer.log = copy.deepcopy(metadata["log"])
    trainer.state_rms = dict(metadata["state_rms"])
    # Checkpoints that were written before these two were measured lack them.
    trainer.rows_in_use = dict(metadata.get("rows_in_use", {}))
    trainer.state_bytes = metadata.get("state_bytes", 0)
    precision = metadata["precision"]
    try:
        device = devices.require(metadata["device"], precision)
    except ValueError as error:
        device, precision = "cpu", "float32"
        trainer.last_refusal = f"{error}; the run continues on the CPU in float32"
        trainer.log += [[trainer.step, "device", device], [trainer.step, "precision", precision]]
    trainer.place = move_to(device, precision, trainer.model, trainer.optimizer, trainer.recipe)
    if trainer.place.scaler.is_enabled() and metadata["scaler"]:
        trainer.place.scaler.load_state_dict(metadata["scaler"])
    trainer.last_good = snapshot
