"""python -m qllk: the commands, their options, and what each does with them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from . import __version__, doctor, selftest
from .checks import check_rate
from .files import write_atomically
from .lab import grade, progress, serve
from .model import sample
from .model.register import load_parts
from .presets import PRESETS
from .study import bench, console, experiments, memory, options, session
from .text.corpora import corpus, describe_names
from .training import checkpoint, costs, devices
from .training.recipe import Recipe
from .training.trainer import Diverged

_PROGRAM = "qllk" if Path(sys.argv[0]).stem == "qllk" else "python -m qllk"


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 after an error, or 130 after an interrupt.

    Raises   SystemExit after --help or --version, and for options that cannot be read
    """
    console.replace_unencodable()
    args = _parser().parse_args(arguments)
    try:
        load_parts(*args.parts)
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError, Diverged) as error:
        console.say(error)
        return 1
    except MemoryError as error:
        console.say(f"not enough memory {error}")
        return 1
    except KeyboardInterrupt:
        console.say("interrupted")
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong with the options."""

    def error(self, message):
        console.say(f"{message}; see {self.prog} --help")
        self.exit(2)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows only the defaults that say something."""

    def _get_help_string(self, action):
        silent = action.default in (None, False, "\n", [])
        return action.help if silent else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    top = _Parser(prog=_PROGRAM)
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument(
        "--parts",
        type=options.path,
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file that registers parts of your own, see qllk.register",
    )
    commands = top.add_subparsers(required=True, metavar="command")
    for name, run, add_options, what, more in _COMMANDS:
        made = commands.add_parser(
            name, help=what, description=f"{what} {more}", formatter_class=_HelpFormatter
        )
        add_options(made)
        made.set_defaults(run=run)
    return top


# ---------------------------------------------------------------- presets


def _add_presets(made):
    made.add_argument("--window", type=int, default=Recipe.window, help="ids per row")
    made.add_argument("--batch", type=int, default=Recipe.batch, help="rows per training step")
    options.add_json(made)


def _presets(args):
    facts = {}
    for name, spec in tqdm(PRESETS.items(), leave=False, disable=None):
        rows, window = spec.split_window(args.window)
        sizes = {"window": window, "batch": args.batch * rows}
        found = costs.measure_costs(spec, **sizes)
        facts[name] = found._asdict() | sizes | {"spec": json.loads(spec.to_json())}
    console.print_result(facts, costs.format_costs(facts, args.batch), args.json)


# ---------------------------------------------------------------- sample


def _add_sample(made):
    add = made.add_argument
    add("checkpoint", type=options.path, help="file written by train --save")
    add("--prompt", default="\n", help="the text to continue")
    add("--length", type=int, default=500, help="ids, fewer if the context ends")
    add("--temperature", type=float, default=0.8, help="0 is greedy")
    add("--top-k", type=int, help="sample only from the k most probable ids")
    add("--top-p", type=float, help="sample only from the most probable ids up to this total")
    add("--repetition-penalty", type=float, default=1.0, help="above 1: fewer repeats")
    add("--draft", type=options.path, help="checkpoint of a smaller model that guesses ahead")
    add("--ahead", type=int, default=4, help="ids that the draft guesses at a time")
    add("--seed", type=int, help="makes the sample reproducible")


def _sample(args):
    model, tokenizer = checkpoint.load_model(args.checkpoint)
    if model.spec.family != "decoder":
        raise ValueError(
            f"{str(args.checkpoint)!r} is an {model.spec.family}, which cannot continue a prompt; "
            "`python -m qllk train --sample-at` shows how it fills gaps in a text"
        )
    prompt = sample.encode_prompt(model, args.prompt, tokenizer)
    length = sample.positions_left(model, prompt, args.length)
    ids = sample.take_first(_stream(args, model, prompt, tokenizer), length)
    first = [*islice(ids, 1)]  # what cannot be sampled is said before the prompt is printed
    console.print_pieces(tokenizer.decode_stream(chain(prompt.T, first, ids)))
    if length < args.length:
        console.say(f"the context of {model.spec.context} ids is full")


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
    ahead = min(args.ahead, args.length or 1)
    return sample.speculate(model, draft, prompt, to_probabilities, ahead, seed=args.seed)


# ---------------------------------------------------------------- memory


def _add_memory(made):
    add = made.add_argument
    add("--model", default=options.MODEL, help="a preset with recall, or a Spec's JSON file")
    add("--corpus", default=options.CORPUS, help=describe_names())
    add("--seconds", type=float, default=30.0, help="of one core, for each of five models")
    add("--seed", type=int, default=0, help="random seed of weights and windows")
    add(
        "--report",
        type=options.path,
        default=Path("runs/memory.json"),
        help="write the results as JSON",
    )
    options.add_json(made)


def _memory(args):
    beside = args.report.with_suffix(".md")
    options.check_outputs(args.report, beside)
    found = memory.study_memory(args.model, corpus(args.corpus).text, args.seconds, args.seed)
    facts = {"machine": devices.describe_machine()} | found
    tables = memory.format_study(facts)
    console.print_result(facts, tables, args.json)
    write_atomically(args.report, json.dumps(facts, indent=1).encode())
    write_atomically(beside, f"{tables}\n".encode(errors="replace"))


# ---------------------------------------------------------------- progress, grade


def _add_nothing(made):
    pass


def _progress(args):
    progress.show_progress()


def _add_grade(made):
    add = made.add_argument
    add("folder", type=options.path, help="folder with the learners' notebooks")
    add("--seconds", type=float, default=120.0, help="time limit for each notebook")
    add("--csv", type=options.path, default=Path("grades.csv"), help="write the table to this file")


def _grade(args):
    check_rate("--seconds", args.seconds)
    options.check_outputs(args.csv)
    grades = []
    try:
        for verdict in tqdm(grade.grade(args.folder, args.seconds), unit=" verdicts", disable=None):
            grades.append(verdict)
    finally:  # what is known when it is interrupted
        if grades:
            console.print_text(grade.format_grades(grades))
            write_atomically(args.csv, grade.to_csv(grades).encode(errors="replace"))


# ---------------------------------------------------------------- the table


class _Command(NamedTuple):
    name: str
    run: Callable[[argparse.Namespace], None]
    add_options: Callable[[argparse.ArgumentParser], None]
    what: str  # in one sentence; docstrings are not there under python -OO
    more: str = ""


_COMMANDS = (
    _Command(
        *("lab", serve.open_lab, serve.add_options),
        "Open the lessons in JupyterLab.",
        "In a clone, its own notebooks are opened. Elsewhere they are first copied into your "
        "folder, or to DIR. A file that is there already is never overwritten: a new version of "
        "qllk has its lessons in a folder of its own, and what you wrote in earlier ones stays.",
    ),
    _Command(
        *("test", selftest.check_installation, _add_nothing),
        "Check this installation in about a minute: a model, training, files, a lesson.",
    ),
    _Command(
        *("doctor", doctor.examine, options.add_json),
        "Show this machine, its devices and their precisions, and what to mend here.",
    ),
    _Command(
        *("presets", _presets, _add_presets),
        "List the presets, and what each costs to run and to train.",
    ),
    _Command(
        *("train", session.train, session.add_options),
        "Train a model on a corpus and evaluate it on the whole held-out split.",
    ),
    _Command(
        *("sample", _sample, _add_sample),
        "Continue a prompt with a trained model, one id at a time.",
    ),
    _Command(
        *("evaluate", experiments.evaluate, experiments.add_evaluate),
        "Judge a trained model on its whole held-out text: in windows, as a stream, as a writer.",
    ),
    _Command(
        *("spec", experiments.print_spec, experiments.add_spec),
        "Print a model's Spec as JSON. A changed file is named wherever a preset can be.",
    ),
    _Command(
        *("runs", experiments.show_runs, experiments.add_runs),
        "List the runs that train --keep has kept, compare two of them, and plot them.",
    ),
    _Command(
        *("rerun", experiments.rerun, experiments.add_rerun),
        "Train a kept run again, and say whether it was the same bit for bit.",
    ),
    _Command(
        *("bench", bench.bench, bench.add_options),
        "Race models against their controls: equal computing time, equal text, equal search.",
        "The search tries every size of an entry with every rate and batch at a quarter of the "
        "smallest budget; the best sizes train at the smallest budget, and then at each longer "
        "one. The loss in windows of 1,024 decides, on the first --validate-bytes of the held-out "
        "split in the search, and then on all of it. The best size of each budget runs with all "
        "seeds. It is also judged in longer windows and as a stream; where the program zpaq is "
        "installed, its line is the stream's peer.",
    ),
    _Command(
        *("memory", _memory, _add_memory),
        "Show where a memory pays, by the distance of what it recalls, and what it costs.",
        "The tables are also written as Markdown, next to the report.",
    ),
    _Command(
        *("progress", _progress, _add_nothing),
        "Show what you have predicted, answered and solved in the lessons so far.",
    ),
    _Command(
        *("grade", _grade, _add_grade),
        "Judge the functions that notebooks define, by the checks of the lessons.",
    ),
)


if __name__ == "__main__":
    sys.exit(main())
