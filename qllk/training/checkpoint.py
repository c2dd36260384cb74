"""A run as one safetensors file; what is not a tensor is stored as JSON in its header.

The file is written under a temporary name and then renamed, so that a path always has either the
old run or the new one, never a mixture. It contains no code. Files are not trusted: a file is
opened once, and its header, the names and shapes of its tensors, the checksum and the numbers are
checked, in this order, before the text that it names is opened.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import _TYPES as DTYPES
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..checks import as_plain, check_range
from ..files import lock_folder, user_path, write_atomically
from ..model.families import build, sketch
from ..spec import Spec
from ..text.corpora import Corpus, encode_corpus, find_again
from ..text.tokens import Tokenizer, tokenizer_from_json
from . import devices, float8, optim
from .recipe import Recipe
from .snapshot import Snapshot, restore_snapshot, take_snapshot
from .trainer import COMMANDS, Diverged, Trainer, defer_interrupts

_FORMAT = 3
_MOST_HEADER_BYTES, _MOST_TENSORS = 1 << 26, 50_000
_LARGEST = 2**63 - 1
# What a resumed run can change, besides what commands do: the rest would make it another run.
_FREE = (
    *("steps", "seconds", "validate_every", "validate_bytes"),
    *("device", "precision", "matmul", "compile", "recompute", "parallel"),
)


@defer_interrupts()
@devices.own_conditions()
def save(trainer: Trainer, path: str | Path, *, replace_later: bool = False) -> Path:
    """Write the run to `path`, completely or not at all; Ctrl-C waits until it is written.

    Raises   OSError when the file cannot be written, or, without `replace_later`, has a later step
             of the same run; Diverged when the weights are not finite or no longer give a finite
             loss; an existing file is then left unchanged
    """
    tensors, metadata = take_snapshot(trainer)
    bad = _find_bad_number(tensors, metadata, trainer.model)
    if bad is None and not math.isfinite(trainer.validate(min(trainer.window, 256) + 1)):
        bad = "the loss is not finite"
    if bad:
        raise Diverged(
            f"after step {trainer.step} {bad}, so nothing was written to "
            f"{str(path)!r}; the next step returns to the last good snapshot"
        )
    path = user_path(path)
    text = json.dumps(metadata, sort_keys=True)
    header = {"format": str(_FORMAT), "metadata": text, "sha256": digest(tensors, text)}
    finish = os.replace if replace_later else partial(_replace_earlier, metadata)
    if trainer.processes.leads:
        write_atomically(path, to_bytes(tensors, header), finish)
    return path


def _replace_earlier(metadata, temporary: Path, target: Path) -> None:
    """Rename `temporary`, unless `target` has a later step of the same run.

    A run that has diverged is back at an earlier step, and two processes may have resumed one run.
    """
    with lock_folder(target.parent):
        try:
            old = read_metadata(target)
        except (OSError, ValueError, ImportError):  # no run that this version can read
            old = metadata
        if identity(old) == identity(metadata) and old["step"] > metadata["step"]:
            raise FileExistsError(
                f"it has step {old['step']} of the same run, which is later than step "
                f"{metadata['step']}; continue that one, delete it, or give another path"
            )
        os.replace(temporary, target)


def identity(metadata: dict) -> tuple:
    """What two checkpoints of one run have in common, from the metadata of one."""
    kept = {k: v for k, v in metadata["recipe"].items() if k not in _FREE}
    return metadata["name"], metadata["spec"], metadata["corpus"]["fingerprint"], kept


def read(path: str | Path) -> Snapshot:
    """Read the tensors and metadata of a checkpoint, and verify its checksum.

    Raises   FileNotFoundError when there is no such file
             ValueError when it is truncated or altered, has another format, or is not a checkpoint
    """
    with _open(path, "cannot be read") as file:
        header = _read_header(file)
        return Snapshot(_read_tensors(header, file), header.metadata)


def read_metadata(path: str | Path) -> dict:
    """What a checkpoint says about its run: "name", "step", "recipe" and so on.

    The tensors are not read, so the checksum is not verified.

    Raises   FileNotFoundError, ValueError as `read`
    """
    with _open(path, "cannot be read") as file:
        return _read_header(file).metadata


def load(
    path: str | Path,
    data: Corpus | None = None,
    model: nn.Module | None = None,
    *,
    changes: Mapping[str, object] | None = None,
    clock: Callable[[], float] = perf_counter,
) -> Trainer:
    """The trainer as it was when saved; its next step is the one that would have followed.

    `data` is optional: by default the run's text is found again by its stored source, if it is on
    this machine and unchanged, and read in the ids of the stored tokenizer. Any text that is given
    is accepted, in the ids of that tokenizer; if it is not the same text, `last_refusal` says so.
    `model` is required if the run's module has no Spec; its weights are overwritten. `changes` are
    fields of the recipe: a new budget, learning rate, batch, device, precision, or another field
    that does not change what the run learns. If this machine lacks the device, precision or matmul,
    the run continues on the CPU in float32 with native matrix products, and the trainer's
    `last_refusal` says so.

    Raises   FileNotFoundError, ValueError as `read`; FileNotFoundError when the text is not on this
             machine, ValueError when it has changed, `model` is missing or is a different model, or
             a change is not possible
    """
    changes = as_plain(dict(changes or {}))
    with _open(path, "cannot be resumed") as file, devices.own_conditions():
        header = _read_header(file)
        metadata = header.metadata
        recipe = _change(Recipe.from_dict(metadata["recipe"]), changes)
        what, plan = _find_model(header, model)
        tensors = _read_tensors(header, file)
        if bad := _find_bad_number(tensors, metadata, plan):
            raise ValueError(f"it is damaged: {bad}")
        text = _find_text(metadata["corpus"], data)
        try:
            devices.require(recipe.device, recipe.precision)
            float8.check(recipe.matmul, recipe.device, recipe.precision)
        except ValueError:
            recipe = replace(recipe, device="cpu", precision="float32", matmul="native")
        trainer = Trainer(what, text, recipe, clock=clock)
        restore_snapshot(trainer, Snapshot(tensors, metadata))
        COMMANDS["batch"].act(trainer, trainer.batch)  # refused if it does not fit in memory
        for name in sorted(COMMANDS.keys() & changes):  # a device before its precision
            trainer.act(name, changes[name])
        for at, name, value in metadata["pending"]:
            if at is not None or name not in changes:
                trainer.submit(name, value, at)
        if text.fingerprint != metadata["corpus"]["fingerprint"]:
            told = f"{_trained_on(metadata['corpus'])}; it continues on another text, {text.name!r}"
            trainer.last_refusal = "; ".join(filter(None, (trainer.last_refusal, told)))
        return trainer


def load_model(path: str | Path) -> tuple[nn.Module, Tokenizer]:
    """The model of a checkpoint, on the CPU and in eval mode, and its tokenizer.

    The corpus itself is not needed.

    Raises   FileNotFoundError, ValueError as `read`
    """
    with _open(path, "has no model that can be built") as file, devices.own_conditions():
        header = _read_header(file)
        spec, plan = _find_model(header)
        tensors = _read_tensors(header, file)
        if bad := _find_bad_number(tensors, header.metadata, plan):
            raise ValueError(f"it is damaged: {bad}")
        model = build(spec)
        model.load_state_dict(_weights(tensors))
        return model.eval(), tokenizer_from_json(header.metadata["corpus"]["tokenizer"])


# ---------------------------------------------------------------- reading


class _Header(NamedTuple):
    """The start of a checkpoint, whose metadata is checked."""

    start: bytes  # of the file, up to the values of the tensors
    metadata: dict
    text: str  # the metadata as JSON
    sha256: str
    tensors: dict[str, Tensor]  # on the meta device: only dtypes and shapes
    rest: int  # bytes of the values


@contextmanager
def _open(path: str | Path, cannot: str) -> Iterator[BinaryIO]:
    """A checkpoint, opened once: what is renamed onto its path meanwhile is another file.

    Raises   FileNotFoundError when there is no such file
             ValueError naming the path, for whatever goes wrong within the context
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}")
    try:
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError as error:  # its text
        raise FileNotFoundError(f"{str(path)!r} {cannot}: {error}") from error
    except (OSError, ValueError, RuntimeError, LookupError, MemoryError) as error:
        raise ValueError(f"{str(path)!r} {cannot}: {error or type(error).__name__}") from error


def _read_header(file: BinaryIO) -> _Header:
    """Read a file up to the values of its tensors, and check all that it says.

    Raises   ValueError saying what is wrong
    """
    size = os.fstat(file.fileno()).st_size
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
        raise ValueError("it is not a readable checkpoint: it has no header, or only a part of it")
    text = file.read(length)
    if (count := text.count(b'"data_offsets"')) > _MOST_TENSORS:
        raise ValueError(f"it is not a readable checkpoint: it has {count} tensors")
    try:
        values = json.loads(text)
        facts = dict(values.pop("__metadata__", None) or {})
        rest = max((entry["data_offsets"][1] for entry in values.values()), default=0)
        whole = size == 8 + length + rest
        tensors = {
            name: torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]], device="meta")
            for name, entry in values.items()
        }
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"it is not a readable checkpoint: {error!r} in its header") from None
    if not whole:
        raise ValueError(f"it is not a readable checkpoint: its length is not {8 + length + rest}")
    metadata = _read_metadata(facts)
    return _Header(first + text, metadata, facts["metadata"], facts["sha256"], tensors, rest)


def _read_tensors(header: _Header, file: BinaryIO) -> dict[str, Tensor]:
    """Read the values of the tensors, and verify the checksum and the numbers.

    Raises   ValueError when something has changed since the file was written
    """
    try:
        tensors = from_bytes(header.start + file.read(header.rest))
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"it is not a readable checkpoint: {error}") from None
    if digest(tensors, header.text) != header.sha256:
        raise ValueError("it has changed since it was written: its checksum differs")
    return tensors


def digest(tensors: Mapping[str, Tensor], metadata: str = "") -> str:
    """A hash over the names, dtypes, shapes and values of tensors, and the metadata."""
    total = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


# ---------------------------------------------------------------- metadata


def _read_metadata(facts: dict) -> dict:
    """The metadata of a header, each value checked by itself.

    Raises   ValueError when it is that of another format or of no run, or is damaged
    """
    if facts.get("format") in ("1", "2") and "facts" in facts:
        raise ValueError(
            f"it was written by an older qllk (format {facts['format']}; this version reads format "
            f"{_FORMAT}), which stores different metadata; train it again, or use the version that "
            "wrote it"
        )
    if facts.get("format") != str(_FORMAT) or not {"metadata", "sha256"} <= set(facts):
        raise ValueError(
            f"it contains tensors, but not a run of qllk (expected format {_FORMAT}, found "
            f"{facts.get('format')!r}); checkpoints are written by `checkpoint.save`"
        )
    try:
        metadata = json.loads(facts["metadata"])
        _check_metadata(metadata)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"its metadata is damaged: {error!r}") from None
    return metadata


def _check_metadata(metadata: dict) -> None:
    """Check every value of the metadata.

    Raises   ValueError, KeyError, TypeError or AttributeError when one is not possible
    """
    if metadata["spec"] is not None:
        Spec.from_json(metadata["spec"])
    Recipe.from_dict(metadata["recipe"])
    corpus = metadata["corpus"]
    for text in (metadata["name"], *(corpus[key] for key in ("source", "fingerprint"))):
        if not isinstance(text, str) or "\0" in text:
            raise ValueError(f"expected a text, got {text!r}")
    tokenizer_from_json(corpus["tokenizer"])
    size = corpus.get("bytes")  # None where it is not known
    check_range("bytes", 0 if size is None else size, int, _LARGEST)
    for name in ("step", "bytes_seen"):
        check_range(name, metadata[name], int, _LARGEST)
    check_range("state_bytes", metadata.get("state_bytes", 0), int, _LARGEST)
    check_range("seconds", metadata["seconds"], int | float, sys.float_info.max)
    for name in ("lr", "batch", "device", "precision"):
        COMMANDS[name].check(metadata[name])
    waiting = [[0 if at is None else at, *rest] for at, *rest in metadata["pending"]]
    for step, name, value in [*metadata["log"], *waiting]:
        check_range("the step of a command", step, int, _LARGEST)
        COMMANDS[name].check(value)
    for numbers in (metadata["state_rms"], metadata.get("rows_in_use", {}), metadata["scaler"]):
        for name, number in numbers.items():
            check_range(name, number, int | float, math.inf)


def _change(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """The recipe with the changes that no command makes.

    Raises   ValueError naming a change that is not valid, or would make it another run
    """
    known = dict.fromkeys((*COMMANDS, *_FREE))
    if refused := sorted(changes.keys() - known):
        raise ValueError(
            f"{refused[0]} cannot be changed when a run is resumed, only {', '.join(known)}; start "
            "a new run for it"
        )
    replace(recipe, **changes)  # checks their values
    budget = {"seconds": None} if "steps" in changes else {}
    return replace(recipe, **budget | {k: v for k, v in changes.items() if k not in COMMANDS})


# ---------------------------------------------------------------- the text


def _find_text(facts: dict, data: Corpus | None) -> Corpus:
    """The text to go on with, in the ids of the tokenizer that the checkpoint has.

    Raises   ValueError, FileNotFoundError when no text is given, and that of the run is not here
    """
    tokenizer = tokenizer_from_json(facts["tokenizer"])
    cure = "; give the text to go on with: checkpoint.load(path, corpus(…)), or --corpus"
    try:
        text = find_again(facts["source"], facts.get("bytes")) if data is None else data
        text = encode_corpus(text, tokenizer, facts["source"])
        if data is None and text.fingerprint != facts["fingerprint"]:
            raise ValueError(f"that is a different text than {text.name!r} is now")
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{_trained_on(facts)}: {error}{cure}") from error
    return text


def _trained_on(facts) -> str:
    source, version = facts["source"], facts.get("python")
    of = f" of Python {version}" if source.endswith("stdlib") and version else ""
    return f"the run was trained on {source!r}{of}"


# ---------------------------------------------------------------- tensors


def _find_model(
    header: _Header, model: nn.Module | None = None
) -> tuple[Spec | nn.Module, nn.Module]:
    """The Spec of a checkpoint and its model on the meta device, or twice the given module.

    Raises   ValueError when the tensors are not those of the run of this model
    """
    stored, spec = header.metadata["spec"], getattr(model, "spec", None)
    if model is not None:
        if stored != (spec and spec.to_json()):
            raise ValueError(f"it is the run of a different model ({header.metadata['name']})")
        _check_tensors(header, model)
        return model, model
    if stored is None:
        raise ValueError(
            f"it is the run of a module without a Spec, {header.metadata['name']}; build the "
            "module and pass it as `checkpoint.load(path, model=…)`"
        )
    try:
        spec = Spec.from_json(stored)
        plan = sketch(spec)
    except Exception as error:  # a malicious spec may fail anywhere
        raise ValueError(f"its model cannot be built: {error}") from error
    _check_tensors(header, plan)
    return spec, plan


def _check_tensors(header: _Header, model: nn.Module) -> None:
    """Check the names, shapes and dtypes of all tensors.

    Raises   ValueError naming one that differs
    """
    recipe = Recipe.from_dict(header.metadata["recipe"])
    optimizer = optim.build_optimizer(
        recipe.optimizer, model, lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    expected = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, initial in enumerate(optim.init_state(optimizer)):
        moments = {f"optimizer.{index}.{key}": like for key, like in initial.items()}
        if not moments.keys().isdisjoint(header.tensors):  # a weight without a gradient has none
            expected |= moments
    wrong = [f"{name!r} is missing" for name in expected.keys() - header.tensors.keys()]
    wrong += [f"{name!r} is unknown" for name in header.tensors.keys() - expected.keys()]
    for name in expected.keys() & header.tensors.keys():
        found, like = header.tensors[name], expected[name]
        if (found.shape, found.dtype) != (like.shape, like.dtype):
            wrong.append(
                f"{name!r} is {tuple(found.shape)} {found.dtype}, expected "
                f"{tuple(like.shape)} {like.dtype}"
            )
    if wrong:
        raise ValueError(
            "its tensors are not those of the model and the optimizer that its metadata "
            f"describes: {min(wrong)} ({len(wrong)} differ in all)"
        )


def _find_bad_number(tensors: dict[str, Tensor], metadata: dict, model: nn.Module) -> str | None:
    """What no run can have among its weights and moments, in words, or None.

    Buffers of a module may have any value.
    """
    weights = {f"model.{name}" for name, _ in model.named_parameters()}
    moments = {name for name in tensors if name.startswith("optimizer.")}
    for name in sorted(weights | moments):
        value = tensors.get(name)
        if value is None or not value.is_floating_point() or not value.numel():
            continue
        if not optim.is_finite(value):
            return f"tensor {name!r} is not finite"
        most = metadata["step"] if name.endswith(".step") else math.inf
        if name.endswith((".exp_avg_sq", ".step")) and not 0 <= value.min() <= value.max() <= most:
            return f"tensor {name!r} must lie in 0 … {most}"
    if metadata["step"] and not moments and not metadata["scaler"]:
        return "the moments of the optimizer are missing"
    return None


def _weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "model."
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
