"""A race from the command line: what `python -m qllk bench` does."""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import replace
from pathlib import Path

from ..files import write_atomically
from ..probes import baselines
from ..probes.evaluate import LN2
from ..text.corpora import corpus, describe_names
from ..training import devices
from . import console, entries, options, race, standings
from .plots import save_picture

_NAMES = "models to race: entries by name, or JSON files of Specs"


def add_options(made: argparse.ArgumentParser) -> None:
    """Add the options of `bench`."""
    add, path, rates = made.add_argument, options.path, race.LEARNING_RATES
    sizes = [f"{windows}x{ids}" for windows, ids in race.BATCHES]
    add("--corpus", default=options.CORPUS, help=describe_names())
    add("--seconds", type=float, nargs="+", default=[100.0], help="of one core, for each run")
    add("--entries", nargs="+", default=[*entries.RACE], metavar="NAME", help=_NAMES)
    add("--lrs", type=float, nargs="+", default=rates, metavar="LR", help="rates to search")
    sizes_meaning = "batches to search, as windows per step x ids per window"
    add("--batches", nargs="+", default=sizes, metavar="NxIDS", help=sizes_meaning)
    add("--keep", type=int, default=2, help="sizes of each entry that the search keeps")
    add("--seeds", type=int, default=3, help="final runs of each entry")
    add("--jobs", type=int, default=os.cpu_count(), help="runs at the same time")
    add(
        "--folder",
        type=options.path,
        default=Path("runs/race"),
        help="where finished runs are kept",
    )
    add(
        "--report", type=options.path, default=Path("runs/race.json"), help="write the rows as JSON"
    )
    add("--plot", type=path, default=Path("runs/race.png"), help="draw the curves as a PNG")
    options.add_dropout(made)
    options.add_json(made)
    searched = ("lr", "batch", "accumulate", "window")
    options.add_recipe(
        made, leave_out=("seconds", "question", "steps", "seed", "validate_every", *searched)
    )


def _read_batch(text: str) -> tuple[int, int]:
    """The windows per step and the ids per window of "4x1024"."""
    if not (found := re.fullmatch(r"(\d+)x(\d+)", text)):
        raise ValueError(
            f"--batches must be windows per step x ids per window, got {text!r}; "
            "write for example 4x1024"
        )
    return int(found[1]), int(found[2])


def bench(args: argparse.Namespace) -> None:
    """Search and race; print the standings, then write and draw them.

    Raises   ValueError, OSError before the race, when an option cannot be followed
             ChildProcessError, KeyboardInterrupt as `run_race`, whose finished runs are kept
    """
    sizes = {name: entries.find_entry(name) for name in args.entries}
    batches = [_read_batch(text) for text in args.batches]
    recipe = replace(
        options.read_recipe(args), validate_every=1 << 30
    )  # a race validates at its own times
    options.check_outputs(args.report, args.folder / "result.json", picture=args.plot)
    text = corpus(args.corpus)
    raced = {
        name: [options.change_dropout(spec, args) for spec in specs]
        for name, specs in sizes.items()
    }
    try:
        rows = race.run_race(
            text.source,
            args.seconds,
            entries=raced,
            learning_rates=args.lrs,
            batches=batches,
            keep=args.keep,
            seeds=args.seeds,
            recipe=recipe,
            folder=args.folder,
            jobs=args.jobs,
        )
    except (KeyboardInterrupt, ChildProcessError):
        console.say(f"finished runs are kept in {args.folder}; the same command goes on from them")
        raise
    zpaq = _measure_zpaq(text, args.folder)
    levels = baselines.measure_baselines(text) | zpaq
    facts = {
        "machine": devices.describe_machine(),
        "precision": recipe.precision,
        "baselines": levels,
        "rows": rows,
    }
    lines = [standings.format_rows(rows)]
    for name, bits in zpaq.items():
        told = f"{bits * LN2:.4f} nats, {bits:.4f} bits per byte"
        lines.append(f"{name}, after the training split as one stream: {told}")
    console.print_result(facts, "\n".join(lines), args.json)
    write_atomically(args.report, json.dumps(facts, indent=1).encode())
    longest = [row for row in rows if row["seconds"] == max(args.seconds)]
    save_picture(standings.draw_race(longest, levels), args.plot)


def _measure_zpaq(text, folder) -> dict[str, float]:
    """`baselines.measure_zpaq`, which takes minutes, kept with the finished runs."""
    path = folder / f"{text.fingerprint[:8]}-zpaq.json"
    if kept := race.read_kept(path):
        return kept
    if found := baselines.measure_zpaq(text):
        write_atomically(path, json.dumps(found).encode())
    return found
