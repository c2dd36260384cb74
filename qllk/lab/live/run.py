"""A run: one daemon thread around a trainer, which people can watch and steer.

        start            pause
    idle ----> running <-------> paused         stop: -> stopped
                  |      resume                 an error: -> failed
                  +--> done, when the trainer's budget is spent

Orders may come from any thread and never block: they set the state or queue a job. The thread takes
jobs (save, load) and training steps one at a time, and lives only while there is work. Views read
`snapshot()` and nothing else.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from ...files import user_path
from ...probes import baselines, evaluate
from ...text.corpora import Corpus
from ...training import checkpoint, devices
from ...training.previews import Preview
from ...training.recipe import Record
from ...training.trainer import Diverged, Trainer, defer_interrupts
from ..show import describe_error
from .history import History, Point

_TRANSITIONS = {
    "start": {"idle": "running"},
    "pause": {"running": "paused"},
    "resume": {"paused": "running"},
    "stop": {"idle": "stopped", "running": "stopped", "paused": "stopped"},
}
_LOSS_DENSITY, _STATE_DENSITY = 32, 8  # points of a curve per doubling of the step
_NOTES = 30  # the number of notes kept; older ones are dropped
_PREVIEW_IDS = 200
_PREVIEW_SHARE = 0.1  # of the time that previews may take
_PREVIEW_SECONDS_MAX = 20.0  # between two previews, however slow they are
_PROMPTS = {"stdlib": "import "}  # by corpus; a line end for any other
_REPLACE_SECONDS = 30.0  # how long a run waits for the one it replaces

_runs: WeakValueDictionary[str, Run] = WeakValueDictionary()
_naming = threading.Lock()  # held while a run takes over a name


class Note(NamedTuple):
    """An event, in words."""

    step: int
    text: str
    bad: bool = False


class Snapshot(NamedTuple):
    """Everything a view may show, copied at one moment."""

    version: int  # grows with every change
    state: str
    doing: str  # the slow operation under way; "" while stepping or waiting
    model: str
    corpus: str
    step: int
    steps: int  # the recipe's budget of steps
    record: Record | None  # of the last step
    step_seconds: float  # smoothed
    bytes_per_second: float
    lr: float  # peak
    batch: int
    train: list[Point]  # bits per byte
    valid: list[tuple[int, float]]
    baselines: dict[str, float]  # bits per byte
    states: dict[str, list[Point]]  # RMS, by layer
    marks: list[tuple[int, str]]  # (step, device and precision since then)
    sample: tuple[int, Preview] | None  # with its step
    notes: list[Note]  # oldest first


class Run:
    """Train in the background.

        run = Run(lambda: Trainer("qllk-3", corpus("stdlib")), name="lesson")
        run.start(); ...; run.pause(); run.resume(); run.send("lr", 1e-3); run.stop(wait=5)

    `make` is called on the run's thread, so constructing a Run is cheap. A new run stops the older
    run of the same name, which drops its trainer, and starts only after that one has ended.
    """

    def __init__(self, make: Callable[[], Trainer], name: str = "run", *, sample_seconds=4.0):
        self.trainer: Trainer | None = None
        self.state = "idle"
        self.error: BaseException | None = None
        self.version = 0
        self._make, self._sample_seconds = make, sample_seconds
        self._changed = threading.Condition(threading.RLock())  # guards all fields
        self._stepping = threading.RLock()  # held while working on the trainer
        self._thread: threading.Thread | None = None
        self._jobs: deque[Callable[[], None]] = deque()
        self._early: list[tuple[str, object]] = []  # commands sent before there was a trainer
        self._notes: deque[Note] = deque(maxlen=_NOTES)
        self._doing = ""
        self._clear()
        self._last: Snapshot | None = None  # what a run shows that has dropped its trainer
        self._before: threading.Thread | None = None
        with _naming:
            if older := _runs.get(name):
                self._before = older._retire()
            _runs[name] = self

    def _clear(self):
        self._record: Record | None = None
        self._pace = 0.0
        self._train, self._valid = History(_LOSS_DENSITY), History(_LOSS_DENSITY)
        self._states: dict[str, History] = {}
        self._baselines: dict[str, float] = {}
        self._marks: deque[tuple[int, str]] = deque(maxlen=_NOTES)
        self._sample: tuple[int, Preview] | None = None
        self._sample_due = time.monotonic()
        self._logged = 0  # commands of the trainer that have been noted

    # ------------------------------------------------------------ orders, from any thread

    def start(self) -> None:
        """Start training, if the run is idle."""
        self._order("start")

    def pause(self) -> None:
        """Pause before the next step, if the run is running."""
        self._order("pause")

    def resume(self) -> None:
        """Continue a paused run."""
        self._order("resume")

    def stop(self, wait: float | None = None) -> None:
        """End before the next step; wait up to `wait` seconds for the thread to finish."""
        thread = self._thread
        self._order("stop")
        if wait is not None and thread:
            thread.join(wait)

    def send(self, name: str, value) -> None:
        """Submit a command to the trainer, see `Trainer.submit`.

        Raises   ValueError when there is no such command or the value is invalid
        """
        with self._changed:
            if self.trainer is None:
                self._early.append((name, value))
            else:
                self.trainer.submit(name, value)

    def save(self, path) -> None:
        """Write a checkpoint between two steps. A failure is noted, and training continues."""
        self._submit(lambda: self._save(path))

    def load(self, path, then: Callable[[Trainer], None] = lambda trainer: None) -> None:
        """Replace this run by the one saved at `path`. After a failure this run continues.

        `then` is called with the new trainer, on the run's thread.
        """
        self._submit(lambda: self._load(path, then))

    def advance(self, steps: int) -> None:
        """Take `steps` steps in the calling thread; an interrupt acts between two of them.

        Raises   RuntimeError while the run is running or after it has ended
                 any error of a step
        """
        for _ in range(steps):
            with defer_interrupts(), self._stepping, devices.own_conditions():
                if self.state not in ("idle", "paused"):
                    raise RuntimeError(
                        f"the run is {self.state}; to advance it must be idle or paused"
                    )
                self._prepare()
                self._step()

    # ------------------------------------------------------------ reading, from any thread

    @property
    def alive(self) -> bool:
        """Whether the run's thread is alive."""
        return self._thread is not None

    def wait(self, timeout: float | None = None) -> str:
        """Wait until the thread has nothing left to do, and return the state.

        Raises   the error that made the run fail
        """
        if thread := self._thread:
            thread.join(timeout)
        if self.error:
            raise self.error
        return self.state

    def snapshot(self) -> Snapshot:
        """What a view may show now."""
        with self._changed:
            if self._last:
                return self._last._replace(
                    version=self.version, state=self.state, doing=self._doing, notes=[*self._notes]
                )
            trainer = self.trainer
            bytes_per_step = trainer.bytes_per_step if trainer else 0
            return Snapshot(
                version=self.version,
                state=self.state,
                doing=self._doing,
                model=trainer.name if trainer else "",
                corpus=trainer.corpus.name if trainer else "",
                step=trainer.step if trainer else 0,
                steps=trainer.recipe.steps if trainer else 0,
                record=self._record,
                step_seconds=self._pace,
                bytes_per_second=bytes_per_step / self._pace if self._pace else 0.0,
                lr=trainer.lr if trainer else 0.0,
                batch=trainer.batch if trainer else 0,
                train=self._train.points(),
                valid=[(point.step, point.mean) for point in self._valid.points()],
                baselines=dict(self._baselines),
                states={name: history.points() for name, history in self._states.items()},
                marks=list(self._marks),
                sample=self._sample,
                notes=list(self._notes),
            )

    # ------------------------------------------------------------ the thread

    def _order(self, name):
        with self._changed:
            self.state = _TRANSITIONS[name].get(self.state, self.state)
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
            # `_watched` has recorded it. A panic of a library is no Exception.
            with suppress(BaseException), self._stepping, devices.own_conditions():
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

    def _retire(self) -> threading.Thread | None:
        """Stop, and drop the trainer once everything ordered is done; return the last thread."""
        with self._changed:
            self._order("stop")
            if self._thread or self.trainer:
                self._submit(self._release)
            return self._thread or self._before

    def _release(self):
        """Drop the trainer, and show what it was from now on: a view may live for very long."""
        with self._changed:
            self._last, self.trainer = self.snapshot(), None
        if self.error:
            traceback.clear_frames(self.error.__traceback__)

    def note(self, text: str, bad=False) -> None:
        """Add a note, which views show."""
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
        """An error in this block pauses the run or ends it, and is noted."""
        try:
            yield
        except Diverged as error:
            self.pause()
            self.note(str(error), bad=True)
            raise
        except BaseException as error:
            self.error = error
            self._end("failed")
            self.note(describe_error(error), bad=True)
            raise

    @contextmanager
    def _tolerated(self, what):
        """An error in this block is noted, and training continues."""
        try:
            yield
        except BaseException as error:
            said = describe_error(error)
            self.note(f"{what}: {said.partition(': ')[2] or said}", bad=True)

    # ------------------------------------------------------------ work on the trainer

    def _step(self):
        with self._watched():
            if record := next(self.trainer, None):
                self._keep(record)
                self._note_commands()
                self._show_preview()
            else:
                self._end("done")

    def _end(self, state):
        with self._changed:
            if self.state != "stopped":
                self.state = state
            self.version += 1

    def _prepare(self):
        if self.trainer is not None:
            return
        with self._watched():
            with self._busy("waiting for the run before this one"):
                if self._before:
                    self._before.join(_REPLACE_SECONDS)
            with self._busy("reading the corpus, building the model"):
                trainer = self._make()
            self._adopt(trainer)

    def _adopt(self, trainer):
        with self._busy("measuring the baselines"):
            found = _baselines(trainer.corpus)
        with self._changed:
            self._clear()
            self.trainer, self._baselines, self._last = trainer, found, None
            self._logged = len(trainer.log)
            early, self._early = self._early, []
        for name, value in early:
            with self._tolerated("refused"):
                trainer.submit(name, value)

    def _keep(self, record: Record):
        with self._changed:
            self.version += 1
            probed = self._record is None or record.state_rms != self._record.state_rms
            self._record = record
            faster = self._pace and 0.9 * self._pace + 0.1 * record.step_seconds
            self._pace = faster or record.step_seconds
            self._train.add(record.step, record.bits_per_byte)
            if record.valid_nats is not None:
                self._valid.add(record.step, record.valid_nats / evaluate.LN2)
            for name, rms in record.state_rms.items() if probed else ():
                self._states.setdefault(name, History(_STATE_DENSITY)).add(record.step, rms)
            where = f"{record.device} {record.precision}"
            if not self._marks or self._marks[-1][1] != where:
                self._marks.append((record.step, where))

    def _note_commands(self):
        trainer = self.trainer
        for _, name, value in trainer.log[self._logged :]:
            self.note(f"{name} is now {value}")
        self._logged = len(trainer.log)
        if trainer.last_refusal:
            self.note(trainer.last_refusal, bad=True)
            trainer.last_refusal = None  # so that an equal refusal is noted again

    def _show_preview(self):
        """Make a preview every few seconds. It samples with a generator of its own."""
        if time.monotonic() < self._sample_due:
            return
        trainer, start = self.trainer, time.monotonic()
        with self._tolerated("no sample"):
            prompt = _PROMPTS.get(trainer.corpus.source, "\n")
            shown = trainer.question.preview(trainer, prompt, _PREVIEW_IDS, trainer.step)
            with self._changed:
                self._sample = trainer.step, shown
                self.version += 1
        spent = time.monotonic() - start
        pause = min(spent / _PREVIEW_SHARE, _PREVIEW_SECONDS_MAX)
        self._sample_due = start + max(self._sample_seconds, pause)

    def _save(self, path):
        with self._tolerated(f"cannot save to {str(path)!r}"), self._busy("saving"):
            if self.trainer is None:
                raise ValueError("there is no run yet; press Start first")
            _check_replaceable(self.trainer, user_path(path))
            saved = checkpoint.save(self.trainer, path)
            self.note(f"saved to {str(saved)!r}")

    def _load(self, path, then):
        with self._tolerated(f"cannot load {str(path)!r}"):
            with self._busy("loading"):
                trainer = checkpoint.load(path)
            self._adopt(trainer)
            self.note(f"loaded {str(path)!r}")
            then(trainer)


def _check_replaceable(trainer: Trainer, path: Path) -> None:
    """Check that a file, if there is one, has the same run; `checkpoint.save` compares the steps.

    Raises   FileExistsError saying what it is instead
    """
    if not path.is_file():
        return
    try:
        found = checkpoint.read_metadata(path)
    except ValueError as error:
        raise FileExistsError(
            f"the file is not a run: {error}; choose another path, or delete it first"
        ) from None
    common = min(found["step"], trainer.step)
    logs = [[entry for entry in log if entry[0] < common] for log in (found["log"], trainer.log)]
    same = checkpoint.identity(found) == checkpoint.identity(trainer.last_good.metadata)
    if not same or logs[0] != logs[1]:
        raise FileExistsError(
            f"the file is another run ({found['name']}, at step {found['step']}); choose another "
            "path, or delete it first"
        )


def _baselines(corpus: Corpus) -> dict[str, float]:
    """Bits per byte to compare a loss with: the floor where it is known, or simple models."""
    if corpus.floor is None:
        return baselines.measure_baselines(corpus)
    return {"uniform": 8.0, "best possible": corpus.floor / evaluate.LN2}
