"""The command line of qllk: lessons, training, sampling, measurements."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from . import __version__, doctor, selftest
from .checks import check_rate
from .files import write_atomically
from .lab import grade, progress, serve
from .model import sample
from .presets import PRESETS, find_spec, recipe_of
from .probes import baselines
from .probes.evaluate import LN2
from .spec import Spec
from .study import entries, memory, race, standings
from .study.plots import save_picture
from .text.corpora import corpus, describe_names
from .training import checkpoint, costs, devices, reports
from .training.questions import fit_vocabulary
from .training.recipe import Recipe
from .training.trainer import Diverged, Trainer

_PROGRAM = "qllk" if Path(sys.argv[0]).stem == "qllk" else "python -m qllk"


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 after an error, or 130 after an interrupt."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, OSError, ModuleNotFoundError, Diverged) as error:
        print(f"qllk: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("qllk: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog=_PROGRAM, description=__doc__)
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="command")
    for name, run, add_options in _COMMANDS:
        made = commands.add_parser(
            name,
            help=run.__doc__.splitlines()[0],
            description=run.__doc__,
            formatter_class=_HelpFormatter,
        )
        add_options(made)
        made.set_defaults(run=run)
    return top


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows only the defaults that say something."""

    def _get_help_string(self, action):
        silent = action.default in (None, False, "\n", [])
        return action.help if silent else super()._get_help_string(action)


def _print(args, facts: dict, text: str) -> None:
    """Print the facts as JSON with --json, or the text."""
    print(json.dumps(facts, indent=2) if args.json else text)


# ---------------------------------------------------------------- presets


def _add_json(made):
    made.add_argument("--json", action="store_true", help="print the result as JSON")


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
    add, names = made.add_argument, ", ".join(PRESETS)
    add("--model", default="qllk-3", help=f"one of {names}, or a Spec's JSON file")
    add("--corpus", default="stdlib", help=describe_names())
    add("--minutes", type=float, help="train for this many minutes, instead of --steps")
    _add_dropout(made)
    add("--save", type=Path, help="write checkpoints to this file")
    add("--save-every", type=float, default=60.0, help="seconds between checkpoints")
    add("--resume", type=Path, help="continue the run saved in this file")
    add("--sample-at", type=float, nargs="*", default=[], help="minutes at which to sample")
    add("--prompt", default="\n", help="the start of samples")
    add("--report", type=Path, help="write curve, samples and result to this JSON file")
    add("--plot", type=Path, help="draw the learning curve to this PNG file")
    _add_json(made)
    _add_recipe(made)


def _add_dropout(made):
    add = made.add_argument
    add("--dropout", type=float, help="dropout rate, instead of the model's own")
    add("--ngram-dropout", type=float, help="dropout rate of rows of n-grams, instead of its own")


def _change_dropout(spec: Spec, args) -> Spec:
    """The spec with the dropout of the options; one without n-grams has only the first."""
    if args.dropout is not None:
        spec = spec.but(dropout=args.dropout)
    if args.ngram_dropout is not None and spec.ngrams:
        spec = spec.but(ngrams=replace(spec.ngrams, dropout=args.ngram_dropout))
    return spec


def _add_recipe(made, leave_out=("seconds",)):
    """One option for each field of a Recipe, with the Recipe's own default."""
    group = made.add_argument_group("recipe")
    for field in fields(Recipe):
        if field.name in leave_out:
            continue
        option, meaning = f"--{field.name.replace('_', '-')}", field.metadata["help"]
        if field.name == "precision":
            meaning = f"auto for the fastest; {field.default} {meaning}"
            group.add_argument(option, default="auto", help=meaning)
        elif field.type == "bool":
            group.add_argument(option, action="store_true", help=meaning)
        else:
            kind = {"int": int, "float": float}.get(field.type, str)
            own = field.name in recipe_of("")
            group.add_argument(
                option,
                type=kind,
                default=None if own else field.default,
                help=f"{meaning}; default: the preset's own" if own else meaning,
            )


def _read_recipe(args) -> Recipe:
    """The Recipe of the options, and of the model where there is no option."""
    names = {field.name for field in fields(Recipe)} - {"seconds"}
    options = vars(args).items()
    given = {name: value for name, value in options if name in names and value is not None}
    given = recipe_of(getattr(args, "model", "qllk-3")) | given
    if given["precision"] == "auto":
        given["precision"] = devices.fastest_precision(given["device"])
    return Recipe(**given)


def _train(args):
    """Train a model on a corpus and evaluate it on the whole held-out split."""
    trainer = _resume(args.resume) if args.resume else _begin(args)
    report = reports.begin_report(trainer)
    _take_steps(trainer, args, report)
    report = reports.finish_report(trainer, report)
    if args.report:
        write_atomically(args.report, json.dumps(report, indent=1).encode())
    if args.plot:
        curves = {report["model"]: report["curve"]}
        save_picture(standings.draw_curves(curves, report["baselines"]), args.plot)
    _print(args, report, reports.format_report(report))


def _resume(path: Path) -> Trainer:
    trainer = checkpoint.load(path)
    if trainer.progress >= 1.0:
        print("this run is complete; it is only evaluated again", file=sys.stderr)
    return trainer


def _begin(args) -> Trainer:
    spec = _change_dropout(find_spec(args.model), args)
    if args.ngram_dropout is not None and not spec.ngrams:
        raise ValueError(
            f"--ngram-dropout is for models with n-grams, which {args.model!r} does not have; "
            "leave it out"
        )
    recipe = _read_recipe(args)
    if args.minutes is not None:
        recipe = replace(recipe, seconds=60 * args.minutes)
    text = corpus(args.corpus)  # last, because it may be a download
    return Trainer(fit_vocabulary(spec, recipe.window, text.tokenizer), text, recipe)


def _take_steps(trainer, args, report):
    """Train to the end with a progress bar; sample and save when it is time."""
    due = sorted(60.0 * minutes for minutes in args.sample_at)
    if due:
        _preview(trainer, args.prompt, 1)  # so that an invalid prompt fails now
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


# ---------------------------------------------------------------- sample


def _add_sample(made):
    add = made.add_argument
    add("checkpoint", type=Path, help="file written by train --save")
    add("--prompt", default="\n", help="the text to continue")
    add("--length", type=int, default=500, help="ids, fewer if the context ends")
    add("--temperature", type=float, default=0.8, help="0 is greedy")
    add("--top-k", type=int, help="sample only from the k most probable ids")
    add("--top-p", type=float, help="sample only from the most probable ids up to this total")
    add("--repetition-penalty", type=float, default=1.0, help="above 1: fewer repeats")
    add("--draft", type=Path, help="checkpoint of a smaller model that guesses ahead")
    add("--ahead", type=int, default=4, help="ids that the draft guesses at a time")
    add("--seed", type=int, help="makes the sample reproducible")


def _sample(args):
    """Continue a prompt with a trained model, one id at a time."""
    model, tokenizer = checkpoint.load_model(args.checkpoint)
    if model.spec.family != "decoder":
        raise ValueError(
            f"{str(args.checkpoint)!r} is an {model.spec.family}, which cannot continue a prompt; "
            "`python -m qllk train --sample-at` shows how it fills gaps in a text"
        )
    prompt = sample.encode_prompt(model, args.prompt, tokenizer)
    length = sample.positions_left(model, prompt, args.length)
    ids = sample.take_first(_stream(args, model, prompt, tokenizer), length)
    for chosen in chain(prompt.T, ids):
        sys.stdout.buffer.write(tokenizer.decode(chosen))
        sys.stdout.buffer.flush()
    print()


def _stream(args, model, prompt, tokenizer):
    """Sample ids after the prompt, with the settings of the options."""
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
            f"{str(args.draft)!r} has another tokenizer than {str(args.checkpoint)!r}; a draft "
            "must have the tokenizer of the model that it guesses for"
        )
    to_probabilities = sample.restrict_vocabulary(sample.probabilities(*settings), size)
    return sample.speculate(model, draft, prompt, to_probabilities, args.ahead, seed=args.seed)


# ---------------------------------------------------------------- bench


def _add_bench(made):
    add, rates = made.add_argument, race.LEARNING_RATES
    sizes = [f"{windows}x{ids}" for windows, ids in race.BATCHES]
    add("--corpus", default="stdlib", help=describe_names())
    add("--seconds", type=float, nargs="+", default=[100.0], help="of one core, for each run")
    add("--entries", nargs="+", default=[*entries.RACE], metavar="NAME", help="models to race")
    add("--lrs", type=float, nargs="+", default=rates, metavar="LR", help="rates to search")
    sizes_meaning = "batches to search, as windows per step x ids per window"
    add("--batches", nargs="+", default=sizes, metavar="NxIDS", help=sizes_meaning)
    add("--keep", type=int, default=2, help="sizes of each entry that the search keeps")
    add("--seeds", type=int, default=3, help="final runs of each entry")
    add("--jobs", type=int, default=os.cpu_count(), help="runs at the same time")
    add("--folder", type=Path, default=Path("runs/race"), help="where finished runs are kept")
    add("--report", type=Path, default=Path("runs/race.json"), help="write the rows as JSON")
    add("--plot", type=Path, default=Path("runs/race.png"), help="draw the curves as a PNG")
    _add_dropout(made)
    _add_json(made)
    searched = ("lr", "batch", "accumulate", "window")
    _add_recipe(made, leave_out=("seconds", "steps", "seed", "validate_every", *searched))


def _read_batch(text: str) -> tuple[int, int]:
    """The windows per step and the ids per window of "4x1024"."""
    if not (found := re.fullmatch(r"(\d+)x(\d+)", text)):
        raise ValueError(
            f"--batches must be windows per step x ids per window, got {text!r}; "
            "write for example 4x1024"
        )
    return int(found[1]), int(found[2])


def _bench(args):
    """Race models against their controls: equal computing time, equal text, equal search.

    The search tries every size of an entry with every rate and batch at a quarter of the smallest
    budget; the best sizes train at the smallest budget, and then at each longer one. The loss in
    windows of 1,024 decides, on the first --validate-bytes of the held-out split in the search, and
    then on all of it. The best size of each budget runs with all seeds. It is also judged in longer
    windows and as a stream; where the program zpaq is installed, its line is the stream's peer.
    """
    if unknown := sorted(set(args.entries) - set(entries.ENTRIES)):
        raise ValueError(f"no entry {unknown[0]!r}; choose from {', '.join(entries.ENTRIES)}")
    batches = [_read_batch(text) for text in args.batches]
    recipe = replace(
        _read_recipe(args), validate_every=1 << 30
    )  # a race validates at its own times
    text = corpus(args.corpus)
    rows = race.run_race(
        text.source,
        args.seconds,
        entries={
            name: [_change_dropout(spec, args) for spec in entries.ENTRIES[name]]
            for name in args.entries
        },
        learning_rates=args.lrs,
        batches=batches,
        keep=args.keep,
        seeds=args.seeds,
        recipe=recipe,
        folder=args.folder,
        jobs=args.jobs,
    )
    zpaq = _measure_zpaq(text, args.folder)
    levels = baselines.measure_baselines(text) | zpaq
    facts = {
        "machine": devices.describe_machine(),
        "precision": recipe.precision,
        "baselines": levels,
        "rows": rows,
    }
    write_atomically(args.report, json.dumps(facts, indent=1).encode())
    longest = [row for row in rows if row["seconds"] == max(args.seconds)]
    save_picture(standings.draw_race(longest, levels), args.plot)
    lines = [standings.format_rows(rows)]
    for name, bits in zpaq.items():
        told = f"{bits * LN2:.4f} nats, {bits:.4f} bits per byte"
        lines.append(f"{name}, after the training split as one stream: {told}")
    _print(args, facts, "\n".join(lines))


def _measure_zpaq(text, folder) -> dict[str, float]:
    """`baselines.measure_zpaq`, which takes minutes, kept with the finished runs."""
    path = folder / f"{text.fingerprint[:8]}-zpaq.json"
    if path.exists():
        return json.loads(path.read_text())
    if found := baselines.measure_zpaq(text):
        write_atomically(path, json.dumps(found).encode())
    return found


# ---------------------------------------------------------------- memory


def _add_memory(made):
    add = made.add_argument
    add("--model", default="qllk-3", help="a preset with recall, or a Spec's JSON file")
    add("--corpus", default="stdlib", help=describe_names())
    add("--seconds", type=float, default=30.0, help="of one core, for each of five models")
    add("--seed", type=int, default=0, help="random seed of weights and windows")
    add("--report", type=Path, default=Path("runs/memory.json"), help="write the results as JSON")
    _add_json(made)


def _memory(args):
    """Show where a memory pays, by the distance of what it recalls, and what it costs.

    The tables are also written as Markdown, next to the report.
    """
    found = memory.study_memory(args.model, corpus(args.corpus).text, args.seconds, args.seed)
    facts = {"machine": devices.describe_machine()} | found
    tables = memory.format_study(facts)
    write_atomically(args.report, json.dumps(facts, indent=1).encode())
    write_atomically(args.report.with_suffix(".md"), f"{tables}\n".encode())
    _print(args, facts, tables)


# Each command: its name, what it does, and a function that adds its options to a parser.
# ---------------------------------------------------------------- progress, grade


def _add_nothing(made):
    pass


def _progress(args):
    """Show what you have predicted, answered and solved in the lessons so far."""
    progress.show_progress()


def _add_grade(made):
    add = made.add_argument
    add("folder", type=Path, help="folder with the learners' notebooks")
    add("--seconds", type=float, default=120.0, help="time limit for each notebook")
    add("--csv", type=Path, default=Path("grades.csv"), help="write the table to this file")


def _grade(args):
    """Judge the functions that notebooks define, by the checks of the lessons."""
    check_rate("--seconds", args.seconds)
    grades = list(tqdm(grade.grade(args.folder, args.seconds), unit=" verdicts", disable=None))
    write_atomically(args.csv, grade.to_csv(grades).encode())
    print(grade.format_grades(grades))


_COMMANDS = (
    ("lab", serve.open_lab, serve.add_options),
    ("test", selftest.check_installation, _add_nothing),
    ("doctor", doctor.examine, doctor.add_options),
    ("presets", _presets, _add_presets),
    ("train", _train, _add_train),
    ("sample", _sample, _add_sample),
    ("bench", _bench, _add_bench),
    ("memory", _memory, _add_memory),
    ("progress", _progress, _add_nothing),
    ("grade", _grade, _add_grade),
)


if __name__ == "__main__":
    sys.exit(main())
