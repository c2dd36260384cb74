"""What `python -m qllk spec`, `evaluate`, `runs` and `rerun` do."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..presets import find_spec
from ..text.corpora import corpus, describe_names
from ..training import checkpoint
from . import console, judge, options, runs
from .plots import save_picture


def add_spec(made: argparse.ArgumentParser) -> None:
    """Add the options of `spec`."""
    made.add_argument("model", help="the name of a preset, or a Spec's JSON file")


def print_spec(args: argparse.Namespace) -> None:
    """Print the Spec of a preset or a file."""
    print(json.dumps(json.loads(find_spec(args.model).to_json()), indent=2))


def add_evaluate(made: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate`."""
    add = made.add_argument
    add("checkpoint", type=options.path, help="file written by train --save or --keep")
    add("--corpus", help="another text than that of the run; " + describe_names())
    add("--seed", type=int, default=0, help="random seed of what the model writes")
    options.add_json(made)


def evaluate(args: argparse.Namespace) -> None:
    """Print the scores of a checkpoint, see `judge`.

    Raises   FileNotFoundError, ValueError as `checkpoint.load`
    """
    text = corpus(args.corpus) if args.corpus else None
    found = judge.judge(checkpoint.load(args.checkpoint, text), seed=args.seed)
    console.print_result(found, judge.format_judgement(found), args.json)


# ---------------------------------------------------------------- runs, rerun


def add_runs(made: argparse.ArgumentParser) -> None:
    """Add the options of `runs`."""
    add = made.add_argument
    add("folder", type=options.path, nargs="?", default=Path("runs"), help="folder of kept runs")
    add("--compare", nargs=2, metavar="RUN", help="what differs between two of them, by name")
    add("--plot", type=options.path, help="draw their learning curves to this PNG file")
    options.add_json(made)


def show_runs(args: argparse.Namespace) -> None:
    """List runs, or compare two of them; then draw their curves.

    Raises   FileNotFoundError when there is none
    """
    options.check_outputs(picture=args.plot)
    if args.compare:
        found = [runs.read_run(args.folder / name) for name in args.compare]
        facts, text = runs.compare(*found), runs.format_comparison(*found)
    else:
        found = runs.kept_runs(args.folder)
        if not found:
            raise FileNotFoundError(
                f"no kept runs in {str(args.folder)!r}; `train --keep` keeps one there"
            )
        facts, text = {run.name: run.facts for run in found}, runs.format_runs(found)
    console.print_result(facts, text, args.json)
    if args.plot:
        save_picture(runs.draw_runs(found), args.plot)


def add_rerun(made: argparse.ArgumentParser) -> None:
    """Add the options of `rerun`."""
    made.add_argument("kept", type=options.path, help="folder of a kept run")


def rerun(args: argparse.Namespace) -> None:
    """Repeat a run and print the verdict.

    Raises   ValueError when it is another run now, or cannot be repeated
    """
    run = runs.read_run(args.kept)
    total = len(run.facts["each_step"])
    verdict = runs.rerun(run, partial(tqdm, total=total, unit=" steps", disable=None))
    if not verdict.same:
        raise ValueError(f"{run} is another run now: {verdict.sentence}")
    print(f"{run}: {verdict.sentence}")
