"""A run as one safetensors file; what is not a tensor is stored as JSON in its header.

The file is written under a temporary name and then renamed, so that a path always has either the
old run or the new one, never a mixture. It contains no code. Files are not trusted: the checksum,
the metadata and the tensors are checked before a run continues from one.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from ..checks import check_range
from ..files import write_atomically
from ..model.families import build
from ..spec import Spec
from ..text.corpora import Corpus, corpus
from ..text.tokens import Tokenizer, tokenizer_from_json
from . import devices, float8, optim
from .recipe import Recipe
from .snapshot import Snapshot, restore_snapshot, take_snapshot
from .trainer import COMMANDS, Diverged, Trainer

_FORMAT = 3
# A resumed run may differ in these fields of its recipe.
_FREE = ("device", "precision", "matmul", "compile", "recompute")


@devices.own_conditions()
def save(trainer: Trainer, path: str | Path) -> Path:
    """Write the run to `path`, completely or not at all.

    Raises   OSError when the file cannot be written, Diverged when the weights no longer give a
             finite loss; an existing file is then left unchanged
    """
    if not math.isfinite(trainer.validate(min(trainer.window, 256) + 1)):
        raise Diverged(
            f"after step {trainer.step} the loss is not finite, so nothing was written to "
            f"{str(path)!r}; the next step returns to the last good snapshot"
        )
    tensors, metadata = take_snapshot(trainer)
    text = json.dumps(metadata, sort_keys=True)
    header = {"format": str(_FORMAT), "metadata": text, "sha256": _digest(tensors, text)}
    write_atomically(Path(path), to_bytes(tensors, header))
    return Path(path)


def read(path: str | Path) -> Snapshot:
    """Read the tensors and metadata of a checkpoint, and verify its checksum.

    Raises   FileNotFoundError when there is no such file
             ValueError when it is truncated or altered, has another format, or is not a checkpoint
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{str(path)!r} is not a readable checkpoint: {error}") from None
    if header.get("format") in ("1", "2") and "facts" in header:
        raise ValueError(
            f"{str(path)!r} was written by an older qllk (format {header['format']}; this version "
            f"reads format {_FORMAT}), which stores different metadata; train it again, or use the "
            "version that wrote it"
        )
    if header.get("format") != str(_FORMAT) or not {"metadata", "sha256"} <= set(header):
        raise ValueError(
            f"{str(path)!r} contains tensors, but not a run of qllk (expected format {_FORMAT}, "
            f"found {header.get('format')!r}); checkpoints are written by `checkpoint.save`"
        )
    if _digest(tensors, header["metadata"]) != header["sha256"]:
        raise ValueError(f"{str(path)!r} has changed since it was written: its checksum differs")
    try:
        metadata = json.loads(header["metadata"])
        if metadata["spec"] is not None:
            Spec.from_json(metadata["spec"])
        Recipe.from_dict(metadata["recipe"])
        metadata["corpus"]["source"].lower(), metadata["name"].lower()
        tokenizer_from_json(metadata["corpus"]["tokenizer"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"the metadata in {str(path)!r} is damaged: {error!r}") from None
    return Snapshot(tensors, metadata)


@devices.own_conditions()
def load(
    path: str | Path,
    data: Corpus | None = None,
    model: nn.Module | None = None,
    *,
    clock: Callable[[], float] = perf_counter,
) -> Trainer:
    """The trainer as it was when saved; its next step is the one that would have followed.

    `data` is optional (default: the corpus found by its stored source) and must be the same text.
    `model` is required if the run's module has no Spec; its weights are overwritten. If this
    machine lacks the device, precision or matmul, the run continues on the CPU in float32 with
    native matrix products, and the trainer's `last_refusal` says so.

    Raises   FileNotFoundError, ValueError as `read`; FileNotFoundError when the corpus is gone,
             ValueError when it has changed, or `model` is missing or is a different model
    """
    snapshot = read(path)
    metadata = snapshot.metadata
    try:
        recipe = Recipe.from_dict(metadata["recipe"])
        what = _find_spec(snapshot) if model is None else model
        if data is None:
            data = corpus(metadata["corpus"]["source"])
        try:
            devices.require(recipe.device, recipe.precision)
            float8.check(recipe.matmul, recipe.device, recipe.precision)
        except ValueError:
            recipe = replace(recipe, device="cpu", precision="float32", matmul="native")
        trainer = Trainer(what, data, recipe, clock=clock)
        check_run(trainer, snapshot)
        restore_snapshot(trainer, snapshot)
        for at, name, value in metadata["pending"]:
            trainer.submit(name, value, at)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{str(path)!r} cannot be resumed: {error}") from error
    return trainer


@devices.own_conditions()
def load_model(path: str | Path) -> tuple[nn.Module, Tokenizer]:
    """The model of a checkpoint, on the CPU and in eval mode, and its tokenizer.

    The corpus itself is not needed.

    Raises   FileNotFoundError, ValueError as `read`
    """
    snapshot = read(path)
    try:
        model = build(_find_spec(snapshot))
        model.load_state_dict(_weights(snapshot.tensors))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the model in {str(path)!r} cannot be built: {error}") from None
    return model.eval(), tokenizer_from_json(snapshot.metadata["corpus"]["tokenizer"])


def check_run(trainer: Trainer, snapshot: Snapshot) -> None:
    """Check that a snapshot is a run of this trainer's model, corpus and recipe.

    Raises   ValueError saying what differs or is damaged
    """
    try:
        _check_metadata(trainer, snapshot.metadata)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its metadata is damaged: {type(error).__name__} {error}") from None
    _check_tensors(trainer, snapshot.tensors)


def _check_metadata(trainer, metadata):
    if metadata["spec"] != (trainer.spec and trainer.spec.to_json()):
        raise ValueError(f"it is the run of a different model ({metadata['name']})")
    if metadata["corpus"]["fingerprint"] != trainer.corpus.fingerprint:
        raise ValueError(
            f"it was trained on a different text than {trainer.corpus.name!r} is now; pass the "
            "original text, or start a new run"
        )
    for name, value in asdict(Recipe.from_dict(metadata["recipe"])).items():
        mine = getattr(trainer.recipe, name)
        if value != mine and name not in _FREE:
            raise ValueError(f"its recipe has {name}={value!r}, but this one has {mine!r}")
    for name in ("step", "bytes_seen"):
        check_range(name, metadata[name], int, 2**63 - 1)
    check_range("seconds", metadata["seconds"], int | float, sys.float_info.max)
    for name in ("lr", "batch", "device", "precision"):
        COMMANDS[name].check(metadata[name])
    for step, name, value in metadata["log"]:
        check_range("a step of the log", step, int, 2**63 - 1)
        COMMANDS[name].check(value)
    for at, _, _ in metadata["pending"]:
        check_range("the step of a pending command", at or 0, int, 2**63 - 1)
    check_range("state_bytes", metadata.get("state_bytes", 0), int, 2**63 - 1)
    dict(metadata["scaler"]), dict(metadata["state_rms"]), dict(metadata.get("rows_in_use", {}))


def _check_tensors(trainer, tensors):
    expected = {f"model.{name}": p for name, p in trainer.model.state_dict().items()}
    for index, initial in enumerate(optim.init_state(trainer.optimizer)):
        moments = {f"optimizer.{index}.{key}": like for key, like in initial.items()}
        if not moments.keys().isdisjoint(
            tensors
        ):  # a weight has no moments before its first gradient
            expected |= moments
    if missing := sorted(set(expected) - set(tensors)):
        raise ValueError(f"tensor {missing[0]!r} is missing ({len(missing)} missing in all)")
    if unknown := sorted(set(tensors) - set(expected)):
        raise ValueError(f"tensor {unknown[0]!r} is unknown ({len(unknown)} unknown in all)")
    for name, like in expected.items():
        got = tensors[name]
        if got.shape != like.shape or got.dtype != like.dtype:
            raise ValueError(
                f"tensor {name!r} is {tuple(got.shape)} {got.dtype}, expected "
                f"{tuple(like.shape)} {like.dtype}"
            )


def _find_spec(snapshot) -> Spec:
    """The Spec of a snapshot, after checking that its tensors have the shapes of that model.

    The model is built on the meta device, so that an invalid spec costs no memory.
    """
    tensors, metadata = snapshot
    if metadata["spec"] is None:
        raise ValueError(
            f"it is the run of a module without a Spec, {metadata['name']}; build the module and "
            "pass it as `checkpoint.load(path, model=…)`"
        )
    spec = Spec.from_json(metadata["spec"])
    layers = spec.layers + (spec.patch.layers if spec.patch else 0)
    shapes = None
    if layers <= len(tensors):
        try:
            with torch.device("meta"):
                model = build(spec, seed=0)
        except Exception as error:  # a malicious spec may fail anywhere
            raise ValueError(f"its model cannot be built: {error}") from error
        shapes = {name: value.shape for name, value in model.state_dict().items()}
    if shapes != {name: value.shape for name, value in _weights(tensors).items()}:
        raise ValueError("its weights are not those of the model that its metadata describes")
    return spec


def _weights(tensors) -> dict[str, torch.Tensor]:
    prefix = "model."
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}


def _digest(tensors: dict[str, torch.Tensor], metadata: str) -> str:
    """A hash over the names, dtypes, shapes and values of tensors, and the metadata."""
    total = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
