"""python -m qllk: doctor, presets, train, sample, bench."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from . import __version__
from .files import write_atomically
from .model import sample
from .model.families import count_parameters
from .presets import PRESETS, find_spec, peak_lr
from .probes import baselines, evaluate
from .study import race
from .study.plots import save_picture
from .text.corpora import corpus, corpus_names, describe_names
from .training import checkpoint, costs, devices
from .training.questions import fit_vocabulary
from .training.recipe import Recipe
from .training.trainer import Diverged, Trainer


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 after an error that the message explains, or 130."""
    args = parser().parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, OSError, ModuleNotFoundError, Diverged) as error:
        print(f"qllk: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("qllk: interrupted", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(prog="python -m qllk", description=__doc__)
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="command")
    for name, run, add_options in _COMMANDS:
        made = commands.add_parser(
            name,
            help=run.__doc__.splitlines()[0],
            description=run.__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        add_options(made)
        made.set_defaults(run=run)
    return top


def _print(args, facts: dict, text: str) -> None:
    """Print the facts as JSON if a script asks for them, or the text."""
    print(json.dumps(facts, indent=2) if args.json else text)


# ---------------------------------------------------------------- doctor, presets


def _add_json(made):
    made.add_argument("--json", action="store_true", help="print JSON")


def _doctor(args):
    """Show what this machine is, what it can train on, and how fast."""
    facts = devices.describe_machine() | {
        "qllk": __version__,
        "threads": torch.get_num_threads(),
        "corpora": corpus_names(),
        "devices": [
            device._asdict() | {"fastest": devices.fastest_precision(device.name)}
            for device in devices.available()
        ],
    }
    lines = [f"qllk {__version__}, torch {facts['torch']}, Python {facts['python']}"]
    for device in facts["devices"]:
        lines.append(f"{device['name']}: {device['label']}")
        offers = ", ".join(device["precisions"])
        lines.append(f"    trains in {offers}; fastest here: {device['fastest']}")
    lines.append(f"corpora: {describe_names()}")
    _print(args, facts, "\n".join(lines))


def _add_presets(made):
    made.add_argument("--window", type=int, default=Recipe.window, help="ids per row")
    made.add_argument("--batch", type=int, default=Recipe.batch, help="rows per training step")
    _add_json(made)


def _presets(args):
    """List the presets, and what each costs to run and to train."""
    facts = {}
    for name, spec in tqdm(PRESETS.items(), leave=False, disable=None):
        rows, window = spec.split_window(args.window)
        sizes = {"window": window, "batch": args.batch * rows}
        found = costs.measure_costs(spec, **sizes)
        facts[name] = found._asdict() | sizes | {"spec": json.loads(spec.to_json())}
    _print(args, facts, costs.format_costs(facts, args.batch))


# ---------------------------------------------------------------- train


def _add_train(made):
    names = ", ".join(PRESETS)
    made.add_argument("--model", default="qllk-2", help=f"a Spec's JSON file, or one of {names}")
    made.add_argument("--corpus", default="stdlib", help=describe_names())
    made.add_argument("--minutes", type=float, help="train for this long, instead of --steps")
    made.add_argument("--dropout", type=float, help="instead of the preset's")
    made.add_argument("--save", type=Path, help="write checkpoints to this file")
    made.add_argument("--save-every", type=float, default=60.0, help="seconds between checkpoints")
    made.add_argument("--resume", type=Path, help="continue the run saved in this file")
    made.add_argument(
        "--sample-at", type=float, nargs="*", default=[], help="minutes at which to sample"
    )
    made.add_argument("--prompt", default="\n", help="the start of samples")
    made.add_argument("--report", type=Path, help="write curve, samples and result as JSON")
    made.add_argument("--plot", type=Path, help="draw the learning curve as a PNG")
    made.add_argument("--json", action="store_true", help="print the result as JSON")
    _add_recipe(made)


def _add_recipe(made, leave_out=("seconds",)):
    """One option for each field of a Recipe, with the Recipe's own default."""
    group = made.add_argument_group("recipe")
    for field in fields(Recipe):
        if field.name in leave_out:
            continue
        option, meaning = f"--{field.name.replace('_', '-')}", field.metadata["help"]
        if field.name == "precision":
            group.add_argument(option, default="auto", help=f"auto: the fastest; {meaning}")
        elif field.type == "bool":
            group.add_argument(option, action="store_true", help=meaning)
        elif field.name == "lr":
            meaning = f"{meaning}; {field.default:g}, or the preset's own"
            group.add_argument(option, type=float, help=meaning)
        else:
            kind = {"int": int, "float": float}.get(field.type, str)
            group.add_argument(option, type=kind, default=field.default, help=meaning)


def _read_recipe(args, **changes) -> Recipe:
    names = {field.name for field in fields(Recipe)} - {"seconds"}
    given = {name: value for name, value in vars(args).items() if name in names}
    if given["precision"] == "auto":
        given["precision"] = devices.fastest_precision(given["device"])
    if given.get("lr", ...) is None:
        given["lr"] = peak_lr(args.model)
    return Recipe(**given | changes)


def _train(args):
    """Train a model on a corpus and evaluate it on the whole held-out split."""
    trainer = _resume(args.resume) if args.resume else _begin(args)
    report = {
        "model": trainer.name,
        "asked_for": _label(trainer),
        "parameters": count_parameters(trainer.model),
        "corpus": trainer.corpus.name,
        "device": trainer.place.device,
        "precision": trainer.place.precision,
        "machine": devices.describe_machine(),
        "baselines": baselines.measure_baselines(trainer.corpus),
        "curve": [],
        "samples": [],
    }
    _take_steps(trainer, args, report)
    nats, count = trainer.loss_by_position(len(trainer.corpus.valid))
    nats = evaluate.mean_loss(nats, count)
    report |= {
        "steps": trainer.step,
        "bytes_seen": trainer.bytes_seen,
        "seconds": trainer.seconds,
        "held_out": int(count.sum()),
        "nats_per_byte": nats,
        "bits_per_byte": nats / evaluate.LN2,
    }
    if args.report:
        write_atomically(args.report, json.dumps(report, indent=1).encode())
    if args.plot:
        curves = {report["model"]: report["curve"]}
        save_picture(race.draw_curves(curves, report["baselines"]), args.plot)
    _print(args, report, _summarize(report))


def _resume(path: Path) -> Trainer:
    trainer = checkpoint.load(path)
    if trainer.progress >= 1.0:
        print(f"all its {trainer.step:,} steps are done; evaluating it again", file=sys.stderr)
    return trainer


def _begin(args) -> Trainer:
    text, spec = corpus(args.corpus), find_spec(args.model)
    recipe = _read_recipe(args, seconds=args.minutes and args.minutes * 60)
    if args.dropout is not None:
        spec = spec.but(dropout=args.dropout)
    return Trainer(fit_vocabulary(spec, recipe.window, text.tokenizer), text, recipe)


def _label(trainer) -> str:
    """What the loss is about: bytes, hidden bytes, lost ids …"""
    unit = "bytes" if trainer.corpus.bytes_per_id == 1 else "ids"
    return f"{trainer.question.label}{unit}"


def _take_steps(trainer, args, report):
    """Train to the end, with a progress bar, and samples and checkpoints when they are due."""
    due = sorted(60.0 * minutes for minutes in args.sample_at)
    if due:
        _preview(trainer, args.prompt, 1)  # an invalid prompt fails now, not at the end
    saved = time.monotonic()
    bar = tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining} {postfix}")
    try:
        for record in trainer:
            bar.update(100 * trainer.progress - bar.n)
            bar.set_postfix_str(
                f"step {record.step} {record.bits_per_byte:.3f} bits/byte "
                f"{record.bytes_per_second:,.0f} bytes/s",
                refresh=False,
            )
            if record.valid_nats is not None:
                report["curve"].append([round(trainer.seconds, 2), record.valid_nats])
            while due and trainer.seconds >= due[0]:
                due.pop(0)
                report["samples"].append([trainer.seconds, _preview(trainer, args.prompt)])
            if args.save and time.monotonic() - saved > args.save_every:
                checkpoint.save(trainer, args.save)
                saved = time.monotonic()
    finally:
        bar.close()
        if args.save:
            checkpoint.save(trainer, args.save)
    if due:
        report["samples"].append([trainer.seconds, _preview(trainer, args.prompt)])


def _preview(trainer, prompt: str, length: int = 400) -> str:
    _, given, made = trainer.question.preview(trainer, prompt, length, 0)
    return given + made


def _summarize(report) -> str:
    found = ", ".join(f"{name} {bits:.3f}" for name, bits in report["baselines"].items())
    lines = [
        f"{report['model']}, {report['parameters']:,} parameters, on {report['corpus']}: "
        f"{report['steps']:,} steps, {report['bytes_seen'] / 1e6:.1f} MB read in "
        f"{report['seconds']:.0f} s on {report['device']} in {report['precision']}",
        f"held out, all {report['held_out']:,} {report['asked_for']}: "
        f"{report['nats_per_byte']:.4f} nats, {report['bits_per_byte']:.4f} bits per byte",
        f"baselines in bits per byte: {found}",
    ]
    for seconds, text in report["samples"]:
        lines += [f"--- after {seconds:.1f} seconds of training ---", text]
    return "\n".join(lines)


# ---------------------------------------------------------------- sample


def _add_sample(made):
    made.add_argument("checkpoint", type=Path)
    made.add_argument("--prompt", default="\n")
    made.add_argument("--length", type=int, default=500, help="ids, fewer if the context ends")
    made.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
    made.add_argument("--top-k", type=int)
    made.add_argument("--top-p", type=float)
    made.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="above 1: fewer repeats"
    )
    made.add_argument("--draft", type=Path, help="checkpoint of a smaller model that guesses ahead")
    made.add_argument("--ahead", type=int, default=4, help="ids that the draft guesses at a time")
    made.add_argument("--seed", type=int)


def _sample(args):
    """Continue a prompt with a trained model, one id at a time."""
    model, tokenizer = checkpoint.load_model(args.checkpoint)
    if model.spec.family != "decoder":
        raise ValueError(
            f"{str(args.checkpoint)!r} holds an {model.spec.family}, which cannot continue a "
            "prompt; `python -m qllk train --sample-at` shows what it makes of a text"
        )
    prompt = sample.encode_prompt(model, args.prompt, tokenizer)
    length = sample.positions_left(model, prompt, args.length)
    ids = sample.take_first(_stream(args, model, prompt, tokenizer), length)
    for chosen in chain(prompt.T, ids):
        sys.stdout.buffer.write(tokenizer.decode(chosen))
        sys.stdout.buffer.flush()
    print()


def _stream(args, model, prompt, tokenizer):
    """The stream of ids that the options ask for."""
    settings, size = (args.temperature, args.top_k, args.top_p), tokenizer.vocab_size
    if not args.draft:
        pick = sample.sampler(*settings, seed=args.seed)
        pick = sample.penalize_repetition(pick, args.repetition_penalty, prompt)
        return sample.stream(model, prompt, sample.restrict_vocabulary(pick, size))
    if args.repetition_penalty != 1:
        raise ValueError(
            "--draft and --repetition-penalty exclude each other: several guesses are verified at "
            "a time, but the penalty changes after each; leave one out"
        )
    draft, theirs = checkpoint.load_model(args.draft)
    if theirs != tokenizer:
        raise ValueError(
            f"{str(args.draft)!r} was trained on other ids than {str(args.checkpoint)!r}: a draft "
            "needs the tokenizer of the model that it guesses for"
        )
    to_probabilities = sample.restrict_vocabulary(sample.probabilities(*settings), size)
    return sample.speculate(model, draft, prompt, to_probabilities, args.ahead, seed=args.seed)


# ---------------------------------------------------------------- bench


def _add_bench(made):
    made.add_argument("--corpus", default="stdlib", help=describe_names())
    made.add_argument(
        "--seconds", type=float, nargs="+", default=[100.0], help="of one core, for each run"
    )
    made.add_argument("--entries", nargs="+", default=list(race.RACE), metavar="NAME")
    made.add_argument("--lrs", type=float, nargs="+", default=race.LEARNING_RATES, metavar="LR")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at the same time")
    made.add_argument("--folder", type=Path, default=Path("runs/race"), help="where runs are kept")
    made.add_argument("--report", type=Path, default=Path("runs/race.json"), help="rows as JSON")
    made.add_argument("--plot", type=Path, default=Path("runs/race.png"), help="curves as a PNG")
    made.add_argument("--json", action="store_true", help="print the rows as JSON")
    _add_recipe(made, leave_out=("seconds", "steps", "lr", "seed", "validate_every"))


def _bench(args):
    """Race models against their controls: equal computing time, equal text, equal search."""
    if unknown := sorted(set(args.entries) - set(race.ENTRIES)):
        raise ValueError(f"no entry {unknown[0]!r}; choose from {', '.join(race.ENTRIES)}")
    recipe = _read_recipe(args, validate_every=1 << 30)  # the race validates at its own times
    text = corpus(args.corpus)
    rows = race.run_race(
        text.source,
        args.seconds,
        entries=args.entries,
        learning_rates=args.lrs,
        seeds=args.seeds,
        recipe=recipe,
        folder=args.folder,
        jobs=args.jobs,
    )
    facts = {"machine": devices.describe_machine(), "precision": recipe.precision, "rows": rows}
    write_atomically(args.report, json.dumps(facts, indent=1).encode())
    longest = [row for row in rows if row["seconds"] == max(args.seconds)]
    save_picture(race.draw_race(longest, baselines.measure_baselines(text)), args.plot)
    _print(args, facts, race.format_rows(rows))


class _Command(NamedTuple):
    """A command: its name, what it does, and a function that adds its options to a parser."""

    name: str
    run: Callable
    add_options: Callable


_COMMANDS = (
    _Command("doctor", _doctor, _add_json),
    _Command("presets", _presets, _add_presets),
    _Command("train", _train, _add_train),
    _Command("sample", _sample, _add_sample),
    _Command("bench", _bench, _add_bench),
)


if __name__ == "__main__":
    sys.exit(main())
