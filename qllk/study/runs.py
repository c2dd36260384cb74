"""Runs that are kept: what each one was, how it went, and whether it gives the same again.

A run is a folder with `run.json`, its last checkpoint, `run.safetensors`, and `spec.json`, which
can be named wherever a preset can. `run.json` is the report of `train`, together with what it takes
to repeat the run: its Spec and Recipe, the fingerprint of its text, its log of commands, and of
every step the seconds and the loss. A run that ends after some minutes follows a learning rate that
depends on how fast the machine was; it is repeated with a clock that shows the times of then.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from .. import __version__
from ..checks import check_fields
from ..files import user_path, write_atomically
from ..spec import Spec
from ..text.corpora import corpus
from ..training import checkpoint
from ..training.devices import describe_machine
from ..training.recipe import Recipe, Record
from ..training.snapshot import take_snapshot
from ..training.trainer import Trainer
from .figures import Chart
from .standings import draw_curves

_FACTS, _WEIGHTS = "run.json", "run.safetensors"
# What a run needs to be listed, compared and repeated.
_NEEDED = {
    *("model", "parameters", "corpus", "machine", "curve", "steps", "bytes_seen", "seconds"),
    *("ended", "qllk", "spec", "recipe", "source", "fingerprint", "log", "each_step"),
    "weights",
}
_COLUMNS = ("run", "model", "parameters", "text", "steps", "MB", "seconds", "bits per byte")


class KeptRun(NamedTuple):
    """A run of a folder of runs."""

    name: str
    facts: dict  # run.json

    def __str__(self) -> str:
        return self.name

    @property
    def bits(self) -> float:
        """Bits per byte of the whole held-out split; infinite for a run that ended early."""
        return self.facts.get("bits_per_byte", math.inf)


def keep_run(folder: str | Path, trainer: Trainer, report: dict, steps: Iterable[Record]) -> Path:
    """Write a run with its report and its steps, in a new folder inside `folder`; return that.

    Raises   OSError when it cannot be written
    """
    facts = report | {
        "qllk": __version__,
        "spec": trainer.spec and json.loads(trainer.spec.to_json()),
        "recipe": asdict(trainer.recipe),
        "source": trainer.corpus.source,
        "fingerprint": trainer.corpus.fingerprint,
        "log": trainer.log,
        "each_step": [[record.step_seconds, record.nats] for record in steps],
        "weights": hash_weights(trainer),
    }
    leads, place = trainer.processes.leads, user_path(folder)
    if leads:
        place = _new_folder(place, trainer.name)
    checkpoint.save(trainer, place / _WEIGHTS)
    if leads and trainer.spec:
        write_atomically(place / "spec.json", trainer.spec.to_json().encode())
    if leads:
        write_atomically(place / _FACTS, json.dumps(facts).encode())
    return place


def _new_folder(folder, name):
    """Make a folder that is named after the model and the time, and is there once."""
    name = f"{name.replace(' ', '-')}-{datetime.now():%Y-%m-%d-%H%M%S}"
    for number in itertools.count(1):
        place = folder / (name if number == 1 else f"{name}-{number}")
        try:
            place.mkdir(parents=True)
        except FileExistsError:
            continue
        return place


def hash_weights(trainer: Trainer) -> str:
    """A hash over the values of all weights."""
    tensors = take_snapshot(trainer).tensors
    return checkpoint.digest({k: v for k, v in tensors.items() if k.startswith("model.")})


def kept_runs(folder: str | Path) -> list[KeptRun]:
    """The runs of a folder in the order of their names. What cannot be read is left out."""
    found = []
    for path in sorted(user_path(folder).glob(f"*/{_FACTS}")):
        try:
            found.append(read_run(path.parent))
        except ValueError:
            continue
    return found


def read_run(folder: str | Path) -> KeptRun:
    """A kept run.

    Raises   FileNotFoundError when the folder holds none, ValueError when it is damaged
    """
    folder = user_path(folder)
    if not (path := folder / _FACTS).is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} is not a kept run: it has no {_FACTS}; `train --keep` writes one"
        )
    try:
        facts = json.loads(path.read_text("utf-8"))
        if missing := _NEEDED - facts.keys():
            raise ValueError(f"it lacks {min(missing)!r}")
        check_fields(Recipe, facts["recipe"])
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from None
    return KeptRun(folder.name, facts)


def format_runs(runs: Iterable[KeptRun]) -> str:
    """The runs as a Markdown table, the best one last; a run that ended early comes first."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "| --- | --- | ---: | --- " + "| ---: " * 4 + "|"]
    for run in sorted(runs, key=lambda run: -run.bits):
        facts = run.facts
        cells = (
            *(run.name, facts["model"], f"{facts['parameters']:,}", facts["corpus"]),
            *(f"{facts['steps']:,}", f"{facts['bytes_seen'] / 1e6:.1f}", f"{facts['seconds']:.0f}"),
            facts["ended"] or f"{run.bits:.4f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_runs(runs: Iterable[KeptRun]) -> Chart:
    """The learning curves of the runs."""
    return draw_curves({run.name: run.facts["curve"] for run in runs}, {})


def compare(one: KeptRun, other: KeptRun) -> dict[str, tuple]:
    """What two runs were given that differs, by name: the values of the first and of the second."""
    first, second = _settings(one), _settings(other)
    names = [name for name in first | second if first.get(name) != second.get(name)]
    return {name: (first.get(name), second.get(name)) for name in names}


def _settings(run):
    """What a run was given, flat: of the model, the recipe, the text and the versions."""
    facts = run.facts
    model = {f"model {name}": value for name, value in (facts["spec"] or {}).items()}
    recipe = {f"recipe {name}": value for name, value in facts["recipe"].items()}
    others = {name: facts[name] for name in ("model", "source", "fingerprint", "qllk")}
    return model | recipe | others | facts["machine"]


def format_comparison(one: KeptRun, other: KeptRun) -> str:
    """What differs between two runs, and how far the second one got compared with the first."""
    lines = [f"{name}: {a!r} -> {b!r}" for name, (a, b) in compare(one, other).items()]
    gap = f"{one.bits:.4f} -> {other.bits:.4f} bits per byte ({other.bits - one.bits:+.4f})"
    return "\n".join([f"{one} -> {other}: {gap}", *(lines or ["nothing that they were given"])])


# ---------------------------------------------------------------- repeating


class Verdict(NamedTuple):
    """Whether a run was the same again, and in what it differed, as a sentence."""

    same: bool
    sentence: str


def rerun(run: KeptRun, follow: Callable[[Iterable], Iterable] = iter) -> Verdict:
    """Train a run again, with the commands of its log, and compare every loss and the weights.

    `follow` is wrapped around the trainer, for a progress bar.

    Raises   ValueError when its text has changed, or it was a module without a Spec, or it was
             continued from a checkpoint, so that its first steps are not known
    """
    facts = run.facts
    trainer = _begin_again(facts)
    steps = zip(follow(trainer), facts["each_step"], strict=False)
    for step, (record, (_, nats)) in enumerate(steps, 1):
        if record.nats != nats:
            return Verdict(
                False,
                f"the loss of step {step} was {nats!r} nats, and is {record.nats!r} now "
                f"({abs(record.nats - nats):.1g} apart){_elsewhere(facts)}",
            )
        if step == len(facts["each_step"]):
            break
    if hash_weights(trainer) != facts["weights"]:
        return Verdict(False, f"every loss was the same, but not the weights{_elsewhere(facts)}")
    return Verdict(True, f"all {step:,} losses and the weights are the same, bit for bit")


def _begin_again(facts):
    if facts["spec"] is None:
        raise ValueError(
            "it was the run of a module without a Spec, which only its own code can build again"
        )
    if not (kept := len(facts["each_step"])) or kept != facts["steps"]:
        raise ValueError(
            f"of its {facts['steps']} steps only {kept} are kept, because it was continued from a "
            "checkpoint or went back to a snapshot; only a whole run can be repeated"
        )
    text = corpus(facts["source"])
    if text.fingerprint != facts["fingerprint"]:
        raise ValueError(f"the text {facts['source']!r} is not the one of the run: it has changed")
    spec, recipe = Spec.from_json(json.dumps(facts["spec"])), Recipe.from_dict(facts["recipe"])
    clock = _replayed([seconds for seconds, _ in facts["each_step"]])
    trainer = Trainer(spec, text, recipe, clock=clock)
    trainer.replay(facts["log"])
    return trainer


def _replayed(seconds: Sequence[float]) -> Callable[[], float]:
    """A clock that is read before and after each step, and shows the given durations."""
    times = itertools.chain.from_iterable((0.0, spent) for spent in seconds)
    return lambda: next(times)


def _elsewhere(facts):
    """In what this machine differs from that of the run, as the end of a sentence."""
    here, there = describe_machine(), facts["machine"]
    changed = [name for name, value in here.items() if there.get(name) != value]
    if not changed:
        return ", on the same machine"
    return f"; the run was made with {', '.join(f'{name} {there.get(name)}' for name in changed)}"
