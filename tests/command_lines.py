"""Lines of the command, given one after another in one process; run in an empty folder.

python command_lines.py odd      each option with odd values, which `judge` judges
python command_lines.py plain    every command as it should be used
"""

import argparse
import concurrent.futures
import contextlib
import io
import json
import signal
import sys
import traceback
from pathlib import Path

import torch

from qllk import __main__ as commands
from qllk.study import bench, by_hand, memory, options, race

SECONDS = 60  # until a line counts as one that never ends
ENDLESS = ("--steps", "--minutes", "--length", "--seconds")  # may be asked to take for ever
HUGE = 10**30
PATHS = ("", "/proc", "here", "notes.txt", "notes.txt/x", "no/where", "~nobody-here/x", "loop")
NAMES = ("\udcff", "é\n\x1b[31m", "n" * 300, "a\0b", "damaged.json")
ODD = {
    int: ("-1", "0", str(HUGE), str(2**63), "1.5", "nan", "", "x", "9" * 100),
    float: ("-1", "0", "nan", "inf", "1e308", "1e-320", "", "x"),
    options.path: (*PATHS, *NAMES),
    str: ("", "/proc", "here", "nope", "-1", *NAMES),
}
ODD[options.duration] = ODD[float]
ODD[None] = ODD[str]
EXTRA = """
train --corpus characters:text.txt
train --corpus bpe-10:text.txt
train --corpus bpe-99999999999999999999:text.txt
train --corpus task:copy:1
train --corpus task:copy:99999999999999999999
train --corpus task:noise:-1
train --corpus empty
train --corpus damaged.json:text.txt
train --model deep.json
train --model wide.json
train --model odd.json
train --sample-at
train --sample-at 0 0 0
train --carry 5 --compile
train --device meta
train --window 960
train --window 95
train --validate-bytes 1
train --resume run
train --resume run --replace
train --resume run --lr 1e30
train --resume run --batch 99999999999
train --resume run --save run
train --resume run --save here
train --resume text.txt
train --batch 99999999999 --accumulate 99999999999
presets --window 99999999999999
presets --batch 99999999999999
presets --window 9999999 --batch 9999999
sample run --prompt é
sample run --temperature 0 --top-k 1 --top-p 1
sample run --draft run --temperature 1e-320 --ahead 99999999999
sample run --repetition-penalty 1e-300
sample run --repetition-penalty 1e300
sample text.txt
sample here
bench --seconds
bench --seconds 0.01 nan
bench --batches 99999999999x99999999999
bench --batches 99999999999x8
bench --batches x
bench --entries qllk-3-nano qllk-3-nano
bench --lrs
memory --model qllk-2-nano
grade here
grade text.txt
nonsense
--nonsense
train nonsense
"""
BASE = {
    "train": "--model qllk-2-nano --corpus text.txt --steps 1 --batch 1 --window 32 "
    "--validate-bytes 64 --precision float32",
    "bench": "--corpus text.txt --entries qllk-2-nano --seconds 0.01 --lrs 0.01 --batches 1x32 "
    "--seeds 1 --keep 1 --jobs 1 --precision float32 --folder runs",
    "memory": "--model qllk-3-nano --corpus long.txt --seconds 0.01",
    "presets": "--window 32 --batch 1",
    "sample": "run --length 3",
    "grade": "notebooks",
}


class Here:
    """Works in this process, as a pool would in another."""

    def submit(self, function, *args):
        done = concurrent.futures.Future()
        done.set_result(function(*args))
        return done

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def prepare():
    """Make the files that the lines name, and the work small."""
    text = "the cat sat on the mat, été. " * 40
    Path("text.txt").write_text(text, encoding="utf-8")
    Path("long.txt").write_text(20 * text, encoding="utf-8")
    Path("notes.txt").write_text("notes")
    Path("empty").touch()
    Path("here").mkdir()
    Path("notebooks").mkdir()
    Path("damaged.json").write_text("[" * 100_000)
    Path("loop").symlink_to("loop")
    spec = json.loads(commands.PRESETS["qllk-2-nano"].to_json())
    Path("deep.json").write_text(json.dumps(spec | {"layers": HUGE}))
    Path("wide.json").write_text(json.dumps(spec | {"d_model": 10**9}))
    Path("odd.json").write_text(json.dumps(spec | {"mixers": [["conv", {"width": -1}]]}))
    few = ("qllk-2-nano", "bert-nano", "randygpt-0.3")
    commands.PRESETS = {name: commands.PRESETS[name] for name in few}
    bench.save_picture = lambda chart, path: None  # takes a second
    race._workers = lambda jobs: Here()
    memory._LENGTHS, lookup_text = (10, 100), memory.lookup_text
    memory.lookup_text = lambda: lookup_text(6 * 400, 6 * 400)


def odd_lines():
    """Each option with each odd value, and some lines more."""
    subparsers = next(
        action for action in commands._parser()._actions if isinstance(action.choices, dict)
    )
    for command, parser in subparsers.choices.items():
        if command in ("lab", "test"):  # which start a server, or take a minute
            continue
        base = BASE.get(command, "").split()
        for action in parser._actions:
            if isinstance(action, argparse._StoreAction) and action.option_strings:
                for value in ODD[action.type]:
                    yield [command, *base, f"{action.option_strings[0]}={value}"]
            elif isinstance(action, argparse._StoreAction):
                yield from ([command, *base[1:], value] for value in ODD[action.type])
    for line in EXTRA.strip().splitlines():
        command, *rest = line.split()
        base = BASE.get(command, "").split()
        if "--resume" in rest:
            base = []
        elif command in ("sample", "grade"):
            base = base[1:]
        yield [command, *base, *rest]


def stop(*_):
    raise TimeoutError("this line takes too long")


def press(*_):
    signal.raise_signal(signal.SIGINT)


def judge(line):
    """A sentence if the line does not end as it should."""
    out, err = io.StringIO(), io.StringIO()
    endless = line[-1].startswith(ENDLESS)
    signal.signal(signal.SIGALRM, press if endless else stop)
    signal.alarm(2 if endless else SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = commands.main(line)
    except SystemExit as error:
        code = error.code
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    told = [part.strip() for part in err.getvalue().replace("\r", "\n").split("\n")]
    told = [part for part in told if part and "|" not in part and "is saved to" not in part]
    if code == 0 or (code == 130 and endless):
        return None
    if code not in (1, 2) or len(told) != 1 or not 10 < len(told[0]) < 1500:
        return f"exit code {code}, not one sentence: {told}"
    return None


def check_odd_lines():
    """Prints, as JSON, the number of odd lines and those that do not end as they should."""
    count, wrong = 0, []
    for line in odd_lines():
        count += 1
        if reason := judge(line):
            wrong.append([line, reason])
            print(line, reason, sep="\n    ", file=sys.stderr, flush=True)
    print(json.dumps({"count": count, "wrong": wrong}))


PLAIN = """
doctor
presets
train --sample-at 0 --prompt=☃é --save other --report report.json --plot curve.png
train --resume run
sample run --prompt=☃é
sample run --draft run --length 9
bench
memory
progress
"""


def check_plain_lines():
    """Call every command, with nothing odd. Each must return 0."""
    for command in commands._COMMANDS:
        try:
            commands.main([command.name, "--help"])
        except SystemExit as error:
            if error.code:
                sys.exit(f"{command.name} --help")
    for line in PLAIN.strip().splitlines():
        command, *rest = line.split()
        base = [] if command == "sample" or "--resume" in rest else BASE.get(command, "").split()
        if code := commands.main([command, *base, *rest]):
            sys.exit(f"{line}: exit code {code}")
    sys.exit(by_hand.main(["--corpus", "text.txt", "--steps", "1"]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    prepare()
    commands.main(["train", *BASE["train"].split(), "--save", "run"])
    {"odd": check_odd_lines, "plain": check_plain_lines}[sys.argv[1]]()
