"""What the tests of a live run and of its panel share: a tiny trainer, and waiting."""

import threading
import time

import pytest
from helpers import TINY

from qllk.lab.live import run
from qllk.text.corpora import task
from qllk.training.recipe import Recipe
from qllk.training.trainer import Trainer

CORPUS = task("copy", 4096)
RECIPE = Recipe(steps=100_000, window=32, batch=2, validate_every=7, validate_bytes=64)


class Recorder(Trainer):
    """A trainer that remembers every loss."""

    def __init__(self, *arguments, **options):
        self.losses = {}
        super().__init__(*arguments, **options)

    def __next__(self):
        record = super().__next__()
        self.losses[record.step] = record.nats
        return record


def make(**changes):
    spec = TINY["qllk-2"].but(dropout=0.1)
    return Recorder(spec, CORPUS, Recipe(**{**vars(RECIPE), **changes}))


def wait_for(condition, seconds=60):
    """Poll: the machine may be busy."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return found


def step_of(some):
    return some.trainer.step if some.trainer else 0


def wait_steps(some, more):
    goal = step_of(some) + more
    wait_for(lambda: step_of(some) >= goal)


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("qllk")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    wait_for(lambda: not threads())
    yield
    for some in list(run._runs.values()):
        some.stop()
    wait_for(lambda: not threads())
