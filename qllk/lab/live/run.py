"""A run: one daemon thread around a trainer, for people who watch and change their minds.

        start            pause
    idle ----> running <-------> paused         stop: -> stopped
                  |      resume                 an error: -> failed
                  +--> done, when the trainer's budget is spent

Orders may come from any thread and never wait: they set the state or put a job in the queue. The
thread takes jobs (save, load) and steps one at a time, and lives only while there is work. Views
read `snapshot()` and nothing else.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import NamedTuple
from weakref import WeakValueDictionary

from ...presets import name_of
from ...probes import baselines
from ...text import tasks
from ...text.corpora import Corpus
from ...training import checkpoint
from ...training.previews import make_preview
from ...training.recipe import Record
from ...training.trainer import Diverged, Trainer
from .history import History, Point

MOVES = {
    "start": {"idle": "running"},
    "pause": {"running": "paused"},
    "resume": {"paused": "running"},
    "stop": {"idle": "stopped", "running": "stopped", "paused": "stopped"},
}
LOSS_DENSITY, STATE_DENSITY = 32, 8  # points of a curve for each doubling of the step
NOTES = 30
SAMPLE_BYTES = 200
SAMPLE_SHARE = 0.1  # of the time may go into writing samples
SAMPLE_SECONDS_MOST = 20.0  # between two samples, however slow
PROMPTS = {"stdlib": "import "}  # by corpus; a line end for every other
REPLACED_SECONDS = 30.0  # how long a run waits for the one that it replaces

_runs: WeakValueDictionary[str, Run] = WeakValueDictionary()


class Note(NamedTuple):
    """Something that happened, for people."""

    step: int
    text: str
    bad: bool = False


class Snapshot(NamedTuple):
    """All that a view may know, copied at one moment."""

    version: int  # grows with every change
    state: str
    doing: str  # what takes long just now, "" while stepping or waiting
    model: str
    corpus: str
    step: int  # where the trainer stands
    steps: int  # its budget
    record: Record | None  # of the newest step
    step_seconds: float  # smoothed
    bytes_per_second: float
    lr: float  # the peak that was asked for
    batch: int
    train: list[Point]  # bits per byte
    valid: list[tuple[int, float]]
    baselines: dict[str, float]
    states: dict[str, list[Point]]  # rms, by layer
    marks: list[tuple[int, str]]  # since which step on which device, in which precision
    sample: tuple[int, str, str] | None  # step, prompt, what follows
    notes: list[Note]  # oldest first


class Run:
    """Train in the background.

        run = Run(lambda: Trainer("qllk-2", corpus("stdlib")), name="lesson")
        run.start(); ...; run.pause(); run.resume(); run.send("lr", 1e-3); run.stop(wait=5)

    `make` is called on the run's thread, so nothing heavy happens here. A new run stops the older
    run of the same name and does not begin before that has ended.
    """

    def __init__(self, make: Callable[[], Trainer], name: str = "run", *, sample_seconds=4.0):
        self.trainer: Trainer | None = None
        self.state = "idle"
        self.error: Exception | None = None
        self.version = 0
        self._make, self._sample_seconds = make, sample_seconds
        self._changed = threading.Condition(threading.RLock())  # guards every field
        self._stepping = threading.RLock()  # held by whoever works on the trainer
        self._thread: threading.Thread | None = None
        self._jobs: deque[Callable[[], None]] = deque()
        self._early: list[tuple[str, object]] = []  # commands sent before there was a trainer
        self._notes: deque[Note] = deque(maxlen=NOTES)
        self._doing = ""
        self._forget()
        self._before: threading.Thread | None = None
        if older := _runs.get(name):
            older.stop()
            self._before = older._thread or older._before
        _runs[name] = self

    def _forget(self):
        self._record: Record | None = None
        self._pace = 0.0
        self._train, self._valid = History(LOSS_DENSITY), History(LOSS_DENSITY)
        self._states: dict[str, History] = {}
        self._floors: dict[str, float] = {}
        self._marks: deque[tuple[int, str]] = deque(maxlen=NOTES)
        self._sample: tuple[int, str, str] | None = None
        self._sample_due = time.monotonic()
        self._logged = 0  # how many of the trainer's commands have been noted

    # ------------------------------------------------------------ orders, from any thread

    def start(self):
        self._order("start")

    def pause(self):
        self._order("pause")

    def resume(self):
        self._order("resume")

    def stop(self, wait: float | None = None):
        """End before the next step; `wait` up to so many seconds for that."""
        thread = self._thread
        self._order("stop")
        if wait is not None and thread:
            thread.join(wait)

    def send(self, name: str, value) -> None:
        """A command for the trainer, see `Trainer.post`.

        Raises   ValueError when there is no such command or the value makes no sense
        """
        with self._changed:
            if self.trainer is None:
                self._early.append((name, value))
            else:
                self.trainer.post(name, value)

    def save(self, path) -> None:
        """Write a checkpoint between two steps. A failure is noted; training goes on."""
        self._submit(lambda: self._save(path))

    def load(self, path) -> None:
        """Become the run saved at `path`. A failure is noted; training goes on as it was."""
        self._submit(lambda: self._load(path))

    def advance(self, steps: int) -> None:
        """Take some steps in the calling thread; an interrupt acts between two of them.

        Raises   RuntimeError while the run is running or after it has ended
                 whatever a step raises
        """
        if self.state not in ("idle", "paused"):
            raise RuntimeError(f"the run is {self.state}; to advance it must be idle or paused")
        for _ in range(steps):
            with interrupts_wait(), self._stepping:
                if self.trainer is None:
                    self._prepare()
                self._step()

    # ------------------------------------------------------------ looking, from any thread

    @property
    def alive(self) -> bool:
        """Whether the run has a thread."""
        return self._thread is not None

    def wait(self, timeout: float | None = None) -> str:
        """Wait until the thread has nothing left to do; the state then.

        Raises   what made the run fail
        """
        if thread := self._thread:
            thread.join(timeout)
        if self.error:
            raise self.error
        return self.state

    def snapshot(self) -> Snapshot:
        with self._changed:
            trainer = self.trainer
            batch_bytes = trainer.batch_bytes if trainer else 0
            return Snapshot(
                version=self.version,
                state=self.state,
                doing=self._doing,
                model=name_of(trainer.spec) if trainer else "",
                corpus=trainer.corpus.name if trainer else "",
                step=trainer.step if trainer else 0,
                steps=trainer.recipe.steps if trainer else 0,
                record=self._record,
                step_seconds=self._pace,
                bytes_per_second=batch_bytes / self._pace if self._pace else 0.0,
                lr=trainer.lr if trainer else 0.0,
                batch=trainer.batch if trainer else 0,
                train=self._train.points(),
                valid=[(point.step, point.mean) for point in self._valid.points()],
                baselines=dict(self._floors),
                states={name: history.points() for name, history in self._states.items()},
                marks=list(self._marks),
                sample=self._sample,
                notes=list(self._notes),
            )

    # ------------------------------------------------------------ the thread

    def _order(self, name):
        with self._changed:
            self.state = MOVES[name].get(self.state, self.state)
            self._wake()

    def _submit(self, job):
        with self._changed:
            self._jobs.append(job)
            self._wake()

    def _wake(self):
        self.version += 1
        self._changed.notify_all()
        if self._thread is None and (self._jobs or self.state == "running"):
            self._thread = threading.Thread(target=self._work, name="qllk-run", daemon=True)
            self._thread.start()

    def _work(self):
        while job := self._next_job():
            with suppress(Exception), self._stepping:  # `_watched` has kept it
                job()

    def _next_job(self):
        with self._changed:
            while not self._jobs and self.state == "paused":
                self._changed.wait()
            if self._jobs:
                return self._jobs.popleft()
            if self.state == "running":
                return self._step if self.trainer else self._prepare
            self._thread = None
            return None

    def note(self, text: str, bad=False) -> None:
        """Tell whoever looks."""
        with self._changed:
            step = self.trainer.step if self.trainer else 0
            self._notes.append(Note(step, text, bad))
            self.version += 1

    @contextmanager
    def _busy(self, doing):
        self._set_doing(doing)
        try:
            yield
        finally:
            self._set_doing("")

    def _set_doing(self, doing):
        with self._changed:
            self._doing = doing
            self.version += 1

    @contextmanager
    def _watched(self):
        """What goes wrong in here pauses the run or ends it, and is noted."""
        try:
            yield
        except Diverged as error:
            self.pause()
            self.note(str(error), bad=True)
            raise
        except Exception as error:
            self.error = error
            self._end("failed")
            self.note(f"{type(error).__name__}: {error}", bad=True)
            raise

    @contextmanager
    def _excused(self, what):
        """What goes wrong in here is noted, and training goes on."""
        try:
            yield
        except Exception as error:
            self.note(f"{what}: {error}", bad=True)

    # ------------------------------------------------------------ work on the trainer

    def _step(self):
        with self._watched():
            if record := next(self.trainer, None):
                self._keep(record)
                self._note_commands()
                self._write_sample()
            else:
                self._end("done")

    def _end(self, state):
        with self._changed:
            if self.state != "stopped":
                self.state = state
            self.version += 1

    def _prepare(self):
        with self._watched():
            with self._busy("waiting for the run before this one"):
                if self._before:
                    self._before.join(REPLACED_SECONDS)
            with self._busy("reading the corpus, building the model"):
                trainer = self._make()
            self._adopt(trainer)

    def _adopt(self, trainer):
        with self._busy("measuring the floors"):
            floors = known_floors(trainer.corpus)
        with self._changed:
            self._forget()
            self.trainer, self._floors = trainer, floors
            self._logged = len(trainer.log)
            early, self._early = self._early, []
        for name, value in early:
            with self._excused("refused"):
                trainer.post(name, value)

    def _keep(self, record: Record):
        with self._changed:
            self.version += 1
            looked = self._record is None or record.state_rms != self._record.state_rms
            self._record = record
            faster = self._pace and 0.9 * self._pace + 0.1 * record.step_seconds
            self._pace = faster or record.step_seconds
            self._train.add(record.step, record.bits_per_byte)
            if record.valid_nats is not None:
                self._valid.add(record.step, record.valid_nats / baselines.LN2)
            for name, rms in record.state_rms.items() if looked else ():
                self._states.setdefault(name, History(STATE_DENSITY)).add(record.step, rms)
            where = f"{record.device} {record.precision}"
            if not self._marks or self._marks[-1][1] != where:
                self._marks.append((record.step, where))

    def _note_commands(self):
        trainer = self.trainer
        for _, name, value in trainer.log[self._logged :]:
            self.note(f"{name} is now {value}")
        self._logged = len(trainer.log)
        if trainer.refused:
            self.note(trainer.refused, bad=True)
            trainer.refused = None  # so that the same refusal is noted again

    def _write_sample(self):
        """What the model writes now, every few seconds. It draws with a generator of its own."""
        if time.monotonic() < self._sample_due:
            return
        trainer, start = self.trainer, time.monotonic()
        with self._excused("no sample"):
            prompt = PROMPTS.get(trainer.corpus.source, "\n")
            shown = make_preview(trainer, prompt, SAMPLE_BYTES, trainer.step)
            with self._changed:
                self._sample = trainer.step, shown
                self.version += 1
        spent = time.monotonic() - start
        pause = min(spent / SAMPLE_SHARE, SAMPLE_SECONDS_MOST)
        self._sample_due = start + max(self._sample_seconds, pause)

    def _save(self, path):
        with self._excused(f"cannot save to {str(path)!r}"), self._busy("saving"):
            if self.trainer is None:
                raise ValueError("there is no run yet; press Start first")
            saved = checkpoint.save(self.trainer, path)
            self.note(f"saved to {str(saved)!r}")

    def _load(self, path):
        with self._excused(f"cannot load {str(path)!r}"):
            with self._busy("loading"):
                trainer = checkpoint.load(path)
            self._adopt(trainer)
            self.note(f"loaded {str(path)!r}")


def known_floors(corpus: Corpus) -> dict[str, float]:
    """The losses, in bits per byte, that a run on this corpus is measured against."""
    if corpus.source.startswith("task:"):
        _, name, size, seed = corpus.source.split(":")
        best = tasks.task(name, int(size), int(seed))[1]
        return {"uniform": 8.0, "best possible": best / baselines.LN2}
    return baselines.measure_baselines(corpus)


@contextmanager
def interrupts_wait():
    """An interrupt that comes in here is raised at the end, so that no step is cut in half."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
