"""A run as one file: safetensors, with everything that is not a tensor as JSON in its header.

One file is written beside its place and renamed onto it, so a checkpoint is the old run or the new
one, never half of each. Nothing in it is code. A hash over all of it is checked on reading.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from ..checks import check_range
from ..files import write_atomically
from ..model.families import build
from ..spec import Spec
from ..text.corpora import Corpus, corpus
from ..text.tasks import task
from ..text.tokens import Tokenizer, tokenizer_from_json
from . import devices, float8, optim
from .recipe import COMMANDS, Recipe
from .trainer import Diverged, Trainer

FORMAT = 2


def save(trainer: Trainer, path: str | Path) -> Path:
    """Write the run to `path`, all of it or none.

    Raises   OSError when the place cannot be written, Diverged when the weights give no loss any
             more; in both cases what lay there stays
    """
    if not trainer.sound():
        raise Diverged(
            f"after step {trainer.step} the weights give no finite loss, so nothing was written to "
            f"{str(path)!r}; the next step goes back to the newest good copy"
        )
    tensors, facts = trainer.tensors(), json.dumps(trainer.facts(), sort_keys=True)
    header = {"format": str(FORMAT), "facts": facts, "sha256": _digest(tensors, facts)}
    write_atomically(Path(path), to_bytes(tensors, header))
    return Path(path)


def read(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors and facts of a checkpoint, whole and unchanged since it was written.

    Raises   FileNotFoundError when there is none
             ValueError when the file is cut off, altered, or something else altogether
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{str(path)!r} is no readable checkpoint: {error}") from None
    if header.get("format") != str(FORMAT) or not {"facts", "sha256"} <= set(header):
        raise ValueError(
            f"{str(path)!r} holds tensors but no run of qllk (format {FORMAT} was expected, "
            f"{header.get('format')!r} found); checkpoints are written by `checkpoint.save`"
        )
    if _digest(tensors, header["facts"]) != header["sha256"]:
        raise ValueError(f"{str(path)!r} has changed since it was written; its checksum differs")
    try:
        facts = json.loads(header["facts"])
        Spec.from_json(facts["spec"]), Recipe.from_dict(facts["recipe"])
        facts["corpus"]["source"].lower(), tokenizer_from_json(facts["corpus"]["tokenizer"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} holds no facts of a run: {error!r}") from None
    return tensors, facts


def load(
    path: str | Path, data: Corpus | None = None, *, clock: Callable[[], float] = perf_counter
) -> Trainer:
    """The trainer as it was when saved; the next step is the one that would have come.

    The corpus is found again by its source, unless `data` is given; it must be the same text.
    A device, precision or matmul that this machine lacks is replaced by the CPU in float32, and
    the trainer's `refused` says so.

    Raises   FileNotFoundError, ValueError as `read`; FileNotFoundError when the text is gone,
             ValueError when it has changed
    """
    tensors, facts = read(path)
    try:
        spec, recipe = Spec.from_json(facts["spec"]), Recipe.from_dict(facts["recipe"])
        check_size(spec, tensors)
        if data is None:
            data = find_corpus(facts["corpus"]["source"])
        try:
            devices.require(recipe.device, recipe.precision)
            float8.check(recipe.matmul, recipe.device, recipe.precision)
        except ValueError:
            recipe = replace(recipe, device="cpu", precision="float32", matmul="native")
        trainer = Trainer(spec, data, recipe, clock=clock)
        check_run(trainer, tensors, facts)
        trainer.restore(tensors, facts)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{str(path)!r} cannot be resumed: {error}") from error
    return trainer


def load_model(path: str | Path) -> tuple[torch.nn.Module, Tokenizer]:
    """Only the model of a checkpoint, on the CPU and in eval mode, and what its ids stand for. The
    text that it was trained on need not be at hand.

    Raises   FileNotFoundError, ValueError as `read`
    """
    tensors, facts = read(path)
    try:
        spec = Spec.from_json(facts["spec"])
        check_size(spec, tensors)
        model = build(spec)
        parts = {n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")}
        model.load_state_dict(parts)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the model in {str(path)!r} cannot be built: {error}") from None
    return model.eval(), tokenizer_from_json(facts["corpus"]["tokenizer"])


def check_size(spec: Spec, tensors: dict[str, torch.Tensor]) -> None:
    """Refuse a spec that is not the one of these tensors, before memory is spent on its model."""
    layers = spec.layers + (spec.patch.layers if spec.patch else 0)
    shapes = None
    if layers <= len(tensors):
        try:
            with torch.device("meta"):
                model = build(spec, seed=0)
        except Exception as error:  # a spec made to harm may break anywhere
            raise ValueError(f"its model cannot be built: {error}") from error
        shapes = {f"model.{name}": value.shape for name, value in model.state_dict().items()}
    if shapes != {name: v.shape for name, v in tensors.items() if name.startswith("model.")}:
        raise ValueError("its weights are not those of the model that it names")


def find_corpus(source: str) -> Corpus:
    """The corpus of this `Corpus.source`: a name, a path, or "task:name:size:seed"."""
    if source.startswith("task:"):
        try:
            _, name, size, seed = source.split(":")
            return task(name, int(size), int(seed))[0]
        except ValueError as error:
            raise ValueError(f"{source!r} is not task:NAME:SIZE:SEED: {error}") from None
    return corpus(source)


def _digest(tensors: dict[str, torch.Tensor], facts: str) -> str:
    """A hash over names, dtypes, shapes, numbers and facts."""
    total = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


# A resumed run may differ in these.
_FREE = ("device", "precision", "matmul", "compile", "recompute")


def check_run(trainer, tensors, facts) -> None:
    """Refuse what is not a run of this trainer's model, text and recipe.

    Raises   ValueError saying what differs or is damaged
    """
    _check_facts(trainer, facts)
    _check_tensors(trainer, tensors)


def _check_facts(trainer, facts):
    try:
        if Spec.from_json(facts["spec"]) != trainer.spec:
            raise ValueError("it holds another model than this one")
        if facts["corpus"]["fingerprint"] != trainer.corpus.fingerprint:
            raise ValueError(
                f"it was trained on another text than {trainer.corpus.name!r} holds now; give the "
                "old text, or start a new run"
            )
        for name, value in asdict(Recipe.from_dict(facts["recipe"])).items():
            mine = getattr(trainer.recipe, name)
            if value != mine and name not in _FREE:
                raise ValueError(f"its recipe has {name}={value!r}, this one {mine!r}")
        for name in ("step", "bytes_seen"):
            check_range(name, facts[name], int, 2**63 - 1)
        check_range("seconds", facts["seconds"], int | float, sys.float_info.max)
        COMMANDS["lr"](facts["lr"])
        COMMANDS["batch"](facts["batch"])
        for step, name, value in [
            *facts["log"],
            [0, "device", facts["device"]],
            [0, "precision", facts["precision"]],
        ]:
            check_range("a step of the log", step, int, 2**63 - 1)
            COMMANDS[name](value)
        dict(facts["scaler"]), dict(facts["state_rms"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its facts are damaged: {type(error).__name__} {error}") from None


def _check_tensors(trainer, tensors):
    expected = {f"model.{name}": p for name, p in trainer.model.state_dict().items()}
    for index, fresh in enumerate(optim.init_state(trainer.optimizer)):
        moments = {f"optimizer.{index}.{key}": like for key, like in fresh.items()}
        if not moments.keys().isdisjoint(tensors):  # none before the first gradient
            expected |= moments
    if missing := sorted(set(expected) - set(tensors)):
        raise ValueError(f"tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if unknown := sorted(set(tensors) - set(expected)):
        raise ValueError(f"tensor {unknown[0]!r} belongs to no part ({len(unknown)} in all)")
    for name, like in expected.items():
        got = tensors[name]
        if got.shape != like.shape or got.dtype != like.dtype:
            raise ValueError(
                f"tensor {name!r} is {tuple(got.shape)} {got.dtype}, expected "
                f"{tuple(like.shape)} {like.dtype}"
            )
