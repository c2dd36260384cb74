"""python -m qllk: doctor, presets, train, sample, bench."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import fields
from itertools import chain
from pathlib import Path

import torch
from tqdm import tqdm

from . import __version__
from .checks import look_up
from .files import write_atomically
from .model import sample
from .model.families import count_parameters
from .presets import PRESETS, name_of, peak_lr
from .probes import baselines, evaluate
from .study import race
from .text import objectives
from .text.corpora import corpus_names, describe_names
from .training import checkpoint, costs, devices, previews
from .training.recipe import Recipe
from .training.trainer import Diverged, Trainer


def main(arguments=None) -> int:
    """Run one command. Returns 0, or 1 after an error that the message explains."""
    args = _parser().parse_args(arguments)
    try:
        args.command(args)
    except (ValueError, OSError, ModuleNotFoundError, Diverged) as error:
        print(f"qllk: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("qllk: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m qllk", description=__doc__)
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="command")
    _add_doctor(commands)
    _add_presets(commands)
    _add_train(commands)
    _add_sample(commands)
    _add_bench(commands)
    return top


def _command(commands, function, **options):
    """A subcommand named after its function `_do_…`, with the function's first line as help."""
    help_line = function.__doc__.splitlines()[0]
    made = commands.add_parser(
        function.__name__.removeprefix("_do_"),
        help=help_line,
        description=function.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        **options,
    )
    made.set_defaults(command=function)
    return made


def _show(args, facts: dict, text: str) -> None:
    """The facts as JSON when a script asks for them, else the text."""
    print(json.dumps(facts, indent=2) if args.json else text)


# ---------------------------------------------------------------- doctor, presets


def _add_doctor(commands):
    made = _command(commands, _do_doctor)
    made.add_argument("--json", action="store_true", help="print JSON")


def _do_doctor(args):
    """What this machine is, what it can train on, and how fast."""
    found = devices.available()
    facts = devices.describe_machine() | {
        "qllk": __version__,
        "threads": torch.get_num_threads(),
        "corpora": corpus_names(),
        "devices": [
            device._asdict() | {"fastest": devices.fastest_precision(device.name)}
            for device in found
        ],
    }
    lines = [f"qllk {__version__}, torch {facts['torch']}, Python {facts['python']}"]
    for device in facts["devices"]:
        offers = ", ".join(device["precisions"])
        lines.append(f"{device['name']}: {device['label']}")
        lines.append(f"    trains in {offers}; fastest here: {device['fastest']}")
    lines.append(f"corpora: {describe_names()}")
    _show(args, facts, "\n".join(lines))


def _add_presets(commands):
    made = _command(commands, _do_presets)
    made.add_argument("--window", type=int, default=Recipe.window, help="ids in a row")
    made.add_argument("--batch", type=int, default=Recipe.batch, help="rows in a training step")
    made.add_argument("--json", action="store_true", help="print JSON")


def _do_presets(args):
    """The models that have names, and what each costs to run and to train."""
    facts = {}
    for name, spec in tqdm(PRESETS.items(), leave=False, disable=None):
        rows, window = spec.cut(args.window)
        sizes = {"window": window, "batch": args.batch * rows}
        found = costs.measure_costs(spec, **sizes)
        facts[name] = found._asdict() | sizes | {"spec": json.loads(spec.to_json())}
    _show(args, facts, _costs_table(facts, args.batch))


def _costs_table(facts, batch) -> str:
    """A line for each model, in columns, and a last one that says what was counted."""
    head = ("model", "parameters", "FLOPs/token", "state", "+ per token", "to train", "window")
    lines = [head, *(_costs_line(name, row) for name, row in facts.items())]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    text = [
        "  ".join([f"{name:{first}}", *map(str.rjust, cells, others)]) for name, *cells in lines
    ]
    return "\n".join(text) + (
        "\n\nFLOPs of a forward pass over `window` ids, the hidden half of attention included and\n"
        "elementwise work left out; training takes three times as many. Memory to train is that\n"
        f"in float32 with AdamW, where a step reads as much as {batch} of the longest windows hold."
    )


def _costs_line(name, row):
    sizes = ("state_bytes", "state_bytes_per_token", "training_bytes")
    return (
        name,
        f"{row['parameters']:,}",
        scaled(row["flops_per_token"], 1000, ("", "K", "M", "G", "T")),
        *(scaled(row[size], 1024, ("B", "KiB", "MiB", "GiB", "TiB")) for size in sizes),
        f"{row['window']:,}",
    )


def scaled(number, step, units) -> str:
    """In the largest unit of which it has one or more; a dash for none."""
    if number is None:
        return "-"
    power = sum(number >= step**p for p in range(1, len(units)))
    return f"{number / step**power:.{1 if power else 0}f} {units[power]}"


# ---------------------------------------------------------------- train


def _add_train(commands):
    made = _command(commands, _do_train)
    made.add_argument("--model", default="qllk-2", help=f"one of {', '.join(PRESETS)}")
    made.add_argument("--corpus", default="stdlib", help=f"{describe_names()}; or task:NAME")
    made.add_argument("--minutes", type=float, help="train so long, instead of --steps")
    made.add_argument("--dropout", type=float, help="instead of the preset's")
    made.add_argument("--save", type=Path, help="keep a checkpoint here")
    made.add_argument("--save-every", type=float, default=60.0, help="seconds between checkpoints")
    made.add_argument("--resume", type=Path, help="go on with this run: its model, text, recipe")
    made.add_argument("--sample-at", type=float, nargs="*", default=[], help="minutes")
    made.add_argument("--prompt", default="\n", help="what samples start with")
    made.add_argument("--report", type=Path, help="write curve, samples and result as JSON here")
    made.add_argument("--plot", type=Path, help="draw the learning curve here")
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


def _recipe_of(args, **changes) -> Recipe:
    names = {field.name for field in fields(Recipe)} - {"seconds"}
    given = {name: value for name, value in vars(args).items() if name in names}
    if given["precision"] == "auto":
        given["precision"] = devices.fastest_precision(given["device"])
    if given.get("lr", ...) is None:
        given["lr"] = peak_lr(args.model)
    return Recipe(**given | changes)


def _do_train(args):
    """Train a model on a corpus and judge it on the whole held-out split."""
    if args.resume:
        trainer = checkpoint.load(args.resume)
        if trainer.progress >= 1.0:
            print(f"its {trainer.step:,} steps are all done; it is judged again", file=sys.stderr)
    else:
        spec = look_up(PRESETS, args.model, "preset")
        spec = spec if args.dropout is None else spec.but(dropout=args.dropout)
        recipe = _recipe_of(args, seconds=args.minutes and args.minutes * 60)
        corpus = _find(args.corpus)
        trainer = Trainer(
            objectives.fit_vocabulary(spec, recipe.window, corpus.tokenizer), corpus, recipe
        )
    report = {
        "model": name_of(trainer.spec) if args.resume else args.model,
        "asked_for": _asked_for(trainer),
        "parameters": count_parameters(trainer.model),
        "corpus": trainer.corpus.name,
        "device": trainer.device,
        "precision": trainer.precision,
        "machine": devices.describe_machine(),
        "floors": baselines.measure_baselines(trainer.corpus),
        "curve": [],
        "samples": [],
    }
    _run(trainer, args, report)
    nats, count = trainer.loss_by_position(len(trainer.corpus.valid))
    nats = evaluate.mean_loss(nats, count)
    report |= {
        "steps": trainer.step,
        "bytes_seen": trainer.bytes_seen,
        "seconds": trainer.seconds,
        "held_out": int(count.sum()),
        "nats_per_byte": nats,
        "bits_per_byte": nats / baselines.LN2,
    }
    if args.report:
        write_atomically(args.report, json.dumps(report, indent=1).encode())
    if args.plot:
        race.plot_run(report["model"], report["curve"], args.plot, floors=report["floors"])
    _show(args, report, _summary(report))


def _asked_for(trainer):
    """What the loss is about, for people."""
    unit = "bytes" if trainer.corpus.bytes_per_id == 1 else "ids"
    return f"{objectives.ASKED_FOR[trainer.spec.family]}{unit}"


def _find(name):
    """A corpus by name or path, or a synthetic task as `task:NAME`."""
    if name.startswith("task:") and name.count(":") == 1:
        name = f"{name}:{1 << 18}:0"
    return checkpoint.find_corpus(name)


def _run(trainer, args, report):
    """Every step, with a progress bar, samples at their time, and checkpoints."""
    due = sorted(60.0 * minutes for minutes in args.sample_at)
    if due:
        _write(trainer, args.prompt, 1)  # a prompt that cannot be read is told now, not at the end
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
                report["samples"].append([trainer.seconds, _write(trainer, args.prompt)])
            if args.save and time.monotonic() - saved > args.save_every:
                checkpoint.save(trainer, args.save)
                saved = time.monotonic()
    finally:
        bar.close()
        if args.save:
            checkpoint.save(trainer, args.save)
    if due:
        report["samples"].append([trainer.seconds, _write(trainer, args.prompt)])


def _write(trainer, prompt, length=400):
    _, given, made = previews.make_preview(trainer, prompt, length)
    return given + made


def _summary(report) -> str:
    floors = ", ".join(f"{name} {bits:.3f}" for name, bits in report["floors"].items())
    lines = [
        f"{report['model']}, {report['parameters']:,} parameters, on {report['corpus']}: "
        f"{report['steps']:,} steps, {report['bytes_seen'] / 1e6:.1f} MB read in "
        f"{report['seconds']:.0f} s on {report['device']} in {report['precision']}",
        f"held out, all {report['held_out']:,} {report['asked_for']}: "
        f"{report['nats_per_byte']:.4f} nats, "
        f"{report['bits_per_byte']:.4f} bits per byte",
        f"floors in bits per byte: {floors}",
    ]
    for seconds, text in report["samples"]:
        lines += [f"--- after {seconds:.1f} seconds of training ---", text]
    return "\n".join(lines)


# ---------------------------------------------------------------- sample


def _add_sample(commands):
    made = _command(commands, _do_sample)
    made.add_argument("checkpoint", type=Path)
    made.add_argument("--prompt", default="\n")
    made.add_argument("--length", type=int, default=500, help="ids, as far as the model counts")
    made.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
    made.add_argument("--top-k", type=int)
    made.add_argument("--top-p", type=float)
    made.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="above 1: fewer repeats"
    )
    made.add_argument("--draft", type=Path, help="checkpoint of a smaller model that guesses ahead")
    made.add_argument("--ahead", type=int, default=4, help="ids the draft guesses at a time")
    made.add_argument("--seed", type=int)


def _do_sample(args):
    """Write on from a prompt with a trained model, one id at a time."""
    model, tokenizer = checkpoint.load_model(args.checkpoint)
    if model.spec.family != "decoder":
        raise ValueError(
            f"{str(args.checkpoint)!r} holds an {model.spec.family}, which does not write on from "
            "a prompt; `python -m qllk train --sample-at` shows what it makes of a text"
        )
    prompt = sample.encode_prompt(model, args.prompt, tokenizer)
    length = sample.positions_left(model, prompt, args.length)
    ids = sample.take_first(_stream(args, model, prompt, tokenizer), length)
    for chosen in chain(prompt.T, ids):
        sys.stdout.buffer.write(tokenizer.decode(chosen))
        sys.stdout.buffer.flush()
    print()


def _stream(args, model, prompt, tokenizer):
    """The ids that follow, as the options ask."""
    how = args.temperature, args.top_k, args.top_p
    if not args.draft:
        pick = sample.sampler(*how, seed=args.seed)
        pick = sample.penalize_repetition(pick, args.repetition_penalty, prompt)
        return sample.stream(model, prompt, sample.restrict_vocabulary(pick, tokenizer.vocab_size))
    if args.repetition_penalty != 1:
        raise ValueError(
            "--draft and --repetition-penalty exclude each other: guesses are judged several at a "
            "time, and a penalty changes after each; leave one out"
        )
    draft, theirs = checkpoint.load_model(args.draft)
    if theirs != tokenizer:
        raise ValueError(
            f"{str(args.draft)!r} was trained on other ids than {str(args.checkpoint)!r}: a draft "
            "needs the tokenizer of the model that it guesses for"
        )
    weigh = sample.restrict_vocabulary(sample.probabilities(*how), tokenizer.vocab_size)
    return sample.speculate(model, draft, prompt, weigh, args.ahead, seed=args.seed)


# ---------------------------------------------------------------- bench


def _add_bench(commands):
    made = _command(commands, _do_bench)
    made.add_argument("--corpus", default="stdlib", help=describe_names())
    made.add_argument("--seconds", type=float, nargs="+", default=[100.0], help="of one core")
    made.add_argument("--entries", nargs="+", default=list(race.RACE), metavar="NAME")
    made.add_argument("--lrs", type=float, nargs="+", default=race.LEARNING_RATES, metavar="LR")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    made.add_argument("--folder", type=Path, default=Path("runs/race"), help="where runs are kept")
    made.add_argument("--report", type=Path, default=Path("runs/race.json"), help="rows as JSON")
    made.add_argument("--plot", type=Path, default=Path("runs/race.png"), help="loss as a picture")
    made.add_argument("--json", action="store_true", help="print the rows as JSON")
    _add_recipe(made, leave_out=("seconds", "steps", "lr", "seed", "validate_every"))


def _do_bench(args):
    """Race models against their controls: equal computing time, text and search."""
    if unknown := sorted(set(args.entries) - set(race.ENTRIES)):
        raise ValueError(f"no entry {unknown[0]!r}; choose from {', '.join(race.ENTRIES)}")
    recipe = _recipe_of(args, validate_every=1 << 30)  # the race looks at its own times
    source = _find(args.corpus).source
    rows = race.run_race(
        source,
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
    race.plot_race(longest, args.plot, floors=baselines.measure_baselines(_find(args.corpus)))
    _show(args, facts, race.table(rows))


if __name__ == "__main__":
    sys.exit(main())
