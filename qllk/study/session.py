"""A run from its first step to its report: what `python -m qllk train` does.

What can be known at the start is checked at the start. Whatever ends a run early, such as Ctrl-C, a
divergence or a full disk: its file has its newest good step, and its report what it has measured.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..files import check_writable, write_atomically
from ..presets import PRESETS, find_spec, name_of
from ..spec import Spec
from ..text.corpora import corpus, describe_names
from ..training import checkpoint, devices, parallel, reports
from ..training.finetune import pretrained_model
from ..training.questions import fit_vocabulary
from ..training.recipe import Record
from ..training.trainer import COMMANDS, Diverged, Trainer, defer_interrupts
from . import console, options, runs, standings
from .plots import save_picture

_SAMPLE_IDS = 400


def add_options(made: argparse.ArgumentParser) -> None:
    """Add the options of `train`. What a resumed run may have of its own has no default."""
    add, own, duration = made.add_argument, argparse.SUPPRESS, options.duration
    models = f"one of {', '.join(PRESETS)}, or a Spec's JSON file"
    add("--model", default=own, help=f"{models} (default: {options.MODEL})")
    add(
        "--init-from",
        type=options.path,
        help="start with the weights of this checkpoint, or of a folder of GPT-2, BERT or T5",
    )
    add("--corpus", default=own, help=f"{describe_names()} (default: {options.CORPUS})")
    add("--minutes", type=float, help="train for this many minutes, instead of --steps")
    options.add_dropout(made)
    add("--save", type=options.path, help="write checkpoints to this file, a new one")
    add("--replace", action="store_true", help="let --save write over a file")
    add("--save-every", type=duration, default=60.0, help="seconds between checkpoints")
    add("--resume", type=options.path, help="continue the run in this file, and save it there")
    add(
        "--sample-at",
        type=options.duration,
        nargs="*",
        default=[],
        help="minutes at which to sample",
    )
    add("--prompt", default="\n", help="the start of samples")
    add("--report", type=options.path, help="write curve, samples and result to this JSON file")
    add("--plot", type=options.path, help="draw the learning curve to this PNG file")
    add(
        "--keep",
        type=options.path,
        nargs="?",
        const=Path("runs"),
        metavar="FOLDER",
        help="keep the run in a folder of its own in FOLDER, or in runs, for `runs` and `rerun`",
    )
    options.add_json(made)
    options.add_recipe(made)


def train(args: argparse.Namespace) -> None:
    """Train to the end of the budget and evaluate, or continue a run that was saved.

    Started by torchrun, all processes train the one model, and the first one speaks and writes.

    Raises   ValueError, OSError before the first step, when an option cannot be followed
             Diverged, OSError as the trainer and its file
             ProcessEnded when another process of the run has ended
             KeyboardInterrupt after the first Ctrl-C, see `_single_interrupt`
    """
    with parallel.joined(_device(args)), ExitStack() as quiet:
        if not parallel.current().leads:
            for redirect in (redirect_stdout, redirect_stderr):
                quiet.enter_context(redirect(quiet.enter_context(open(os.devnull, "w"))))
        _train(args)


def _train(args):
    _check(args)
    trainer = _resume(args) if args.resume else _begin(args)
    if args.sample_at:
        _sample(trainer, args.prompt, 1)  # so that an invalid prompt fails now
    if trainer.documents:
        share = trainer.documents.padding_share(trainer.window)
        console.say(
            f"{len(trainer.documents.ends):,} documents share rows of {trainer.window:,} ids; with "
            f"rows of their own, {100 * share:.0f} % would be padding"
        )
    file = _open_file(trainer, args)
    report, start = reports.begin_report(trainer), trainer.step
    steps: list[Record] = []
    with _single_interrupt():
        try:
            _take_steps(trainer, report, steps, file, args)
            report = reports.finish_report(trainer, report)
        except BaseException as error:
            report = reports.end_report(report, error)
            raise
        finally:
            if report["steps"] > start or not report["ended"]:
                _deliver(trainer, report, steps, args)


# ---------------------------------------------------------------- before the first step


def _check(args):
    """Check what is known before a model is built or a text is read."""
    if args.save and args.save.exists() and not (args.replace or _goes_on(args)):
        raise FileExistsError(
            f"{str(args.save)!r} exists: --resume {str(args.save)!r} continues the run in it, and "
            "--replace writes over it"
        )
    for other in ("--resume", "--model"):
        if args.init_from and hasattr(args, other[2:]) and getattr(args, other[2:]):
            raise ValueError(
                f"--init-from and {other} exclude each other: the model is that of the weights"
            )
    options.check_outputs(args.save, args.report, picture=args.plot)


def _goes_on(args) -> bool:
    """Whether the run is saved to the file that it comes from."""
    return bool(args.resume) and (
        args.save is None or os.path.realpath(args.save) == os.path.realpath(args.resume)
    )


def _device(args) -> str:
    """The device of the options, of the run that goes on, or the best one of this machine."""
    if hasattr(args, "device"):
        return args.device
    if args.resume:
        return checkpoint.read_metadata(args.resume)["device"]
    return devices.available()[0].name.split(":")[0]


def _begin(args) -> Trainer:
    if args.init_from:
        return _begin_from(args)
    recipe = options.read_recipe(args, _device(args))
    spec = _change_dropout(find_spec(getattr(args, "model", options.MODEL)), args)
    text = corpus(getattr(args, "corpus", options.CORPUS))  # last, because it may be a download
    return Trainer(
        fit_vocabulary(spec, recipe.window, text.tokenizer, recipe.question), text, recipe
    )


def _begin_from(args) -> Trainer:
    """A new run of the pretrained weights, whose model is theirs."""
    recipe = options.read_recipe(args, _device(args))
    text = corpus(getattr(args, "corpus", options.CORPUS))
    change = partial(_change_dropout, args=args)
    return Trainer(pretrained_model(args.init_from, text, recipe, change), text, recipe)


def _change_dropout(spec, args) -> Spec:
    if args.ngram_dropout is not None and not spec.ngrams:
        raise ValueError(
            f"--ngram-dropout is for models with n-grams, which {name_of(spec)!r} does not have; "
            "leave it out"
        )
    return options.change_dropout(spec, args)


def _resume(args) -> Trainer:
    """The saved run, with the changes that the options ask for.

    Raises   ValueError naming an option that a run cannot change
    """
    recipe, changes = checkpoint.read_metadata(args.resume)["recipe"], options.given_fields(args)
    if changes.get("precision") == "auto":
        changes["precision"] = devices.fastest_precision(changes.get("device", recipe["device"]))
    changes = {k: v for k, v in changes.items() if k in COMMANDS or v != recipe[k]}
    text = corpus(args.corpus) if hasattr(args, "corpus") else None
    trainer = checkpoint.load(args.resume, text, changes=changes)
    _tell_refusal(trainer)
    own = trainer.spec
    asked = _change_dropout(find_spec(args.model) if hasattr(args, "model") else own, args)
    if asked.but(vocab_size=own.vocab_size) != own:
        raise ValueError(
            f"{str(args.resume)!r} is a run of {trainer.name}, whose model, dropout and dropout of "
            "n-grams are fixed; leave out --model, --dropout and --ngram-dropout"
        )
    if trainer.progress >= 1.0:
        console.say("this run is complete; it is only evaluated again")
    return trainer


def _tell_refusal(trainer):
    if trainer.last_refusal:
        console.say(trainer.last_refusal)
        trainer.last_refusal = None


def _open_file(trainer, args) -> _File | None:
    """The file that the run is saved to; a complete run is not saved to its own once more."""
    path = args.save or args.resume
    if not path or (trainer.progress >= 1.0 and _goes_on(args)):
        return None
    console.say(f"this run is saved to {str(check_writable(path))!r}")
    return _File(trainer, path, args)


# ---------------------------------------------------------------- the steps


class _File:
    """The file of a run. An older step never replaces a newer one."""

    def __init__(self, trainer: Trainer, path: Path, args: argparse.Namespace):
        self.path, self._replace, self._every = path, args.replace, args.save_every
        self._step = trainer.step if _goes_on(args) else -1  # that the file has of this run
        self._saved = trainer.seconds  # time of training, which all processes agree on

    def save(self, trainer: Trainer) -> None:
        """Write the run, if it has come further than the file."""
        if trainer.step > self._step:
            with defer_interrupts():
                checkpoint.save(trainer, self.path, replace_later=self._replace)
                self._step = trainer.step

    def save_when_due(self, trainer: Trainer) -> None:
        """Write the run from time to time. A failure is told; the last save may succeed."""
        if trainer.seconds - self._saved > self._every:
            try:
                self.save(trainer)
            except (OSError, Diverged) as error:
                console.say(error)
            self._saved = trainer.seconds


def _take_steps(trainer, report, steps, file, args):
    """Train to the end with a progress bar; note the steps, and sample and save when it is time."""
    due = sorted(60.0 * minutes for minutes in args.sample_at)
    form = "{l_bar}{bar}| {elapsed}<{remaining} {postfix}"
    with tqdm(total=100, unit="%", bar_format=form) as bar:
        try:
            for record in trainer:
                _tell_refusal(trainer)
                report |= reports.progress(trainer)
                steps.append(record)
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
                    report["samples"].append([trainer.seconds, _sample(trainer, args.prompt)])
                if file:
                    file.save_when_due(trainer)
        except Diverged as error:
            raise Diverged(f"{error}; {_way_on(file)}") from None
        finally:
            if file:
                bar.set_postfix_str(f"saving to {str(file.path)!r}")
                file.save(trainer)
    if due:
        report["samples"].append([trainer.seconds, _sample(trainer, args.prompt)])


def _way_on(file) -> str:
    if file:
        return f"`python -m qllk train --resume {str(file.path)!r} --lr RATE` does so"
    return "but without --save nothing of it is kept, so start again"


def _sample(trainer, prompt: str, length: int = _SAMPLE_IDS) -> str:
    _, given, made = trainer.question.preview(trainer, prompt, length, 0)
    return given + made


@contextmanager
def _single_interrupt() -> Iterator[None]:
    """Let the first of Ctrl-C, a request to end and a closed terminal interrupt the block.

    Those after it have no effect, so that they do not undo what is done on the way out. All become
    SIGINT, which `defer_interrupts` holds back where a step must be whole. Only the main thread
    receives signals, and what is ignored, as by nohup, stays ignored.
    """

    def interrupt(*_):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    handlers = {signal.SIGINT: interrupt}
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has fewer
            handlers[getattr(signal, name)] = lambda *_: signal.raise_signal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    heard = [each for each in handlers if signal.getsignal(each) not in (signal.SIG_IGN, None)]
    usual = {each: signal.signal(each, handlers[each]) for each in heard}
    try:
        yield
    finally:
        for each, handler in usual.items():
            signal.signal(each, handler)


# ---------------------------------------------------------------- after the last


def _deliver(trainer, report, steps, args):
    """Print a report, then write and draw it; each happens even if those before it fail."""
    leads = trainer.processes.leads
    with ExitStack() as after:
        if args.keep:
            after.callback(_keep, trainer, report, steps, args)
        if args.plot and leads:
            curves = {report["model"]: report["curve"]}
            chart = standings.draw_curves(curves, report["baselines"])
            after.callback(save_picture, chart, args.plot)
        if args.report and leads:
            after.callback(write_atomically, args.report, json.dumps(report, indent=1).encode())
        console.print_result(report, reports.format_report(report), args.json)


def _keep(trainer, report, steps, args):
    place = runs.keep_run(args.keep, trainer, report, steps)
    console.say(f"this run is kept in {str(place)!r}")
