"""A run in a thread around a trainer: its states, its commands, its errors."""

import contextlib
import gc
import os
import random
import signal
import threading
import time
import weakref

import pytest
import torch
from run_helpers import (  # noqa: F401 - the fixture acts on every test here
    CORPUS,
    RECIPE,
    Recorder,
    make,
    no_thread_is_left,
    step_of,
    wait_for,
    wait_steps,
)

from qllk.lab.lessons.exercises.assembly import Model
from qllk.lab.live import run
from qllk.lab.live.run import Note, Run
from qllk.training.trainer import Diverged

ORDERS = ("start", "pause", "resume", "stop")


def test_a_run_goes_from_idle_to_running_to_paused_to_stopped():
    some = Run(make)
    assert (some.state, some.alive) == ("idle", False)
    some.start()
    wait_steps(some, 3)
    assert (some.state, some.alive) == ("running", True)
    some.pause()
    with some._stepping:
        at_rest = step_of(some)
    assert some.state == "paused"
    some.resume()
    wait_steps(some, 3)
    assert step_of(some) > at_rest
    some.stop(wait=60)
    assert (some.state, some.alive) == ("stopped", False)


def test_a_paused_run_takes_no_step():
    some = Run(make)
    some.start()
    wait_steps(some, 1)
    some.pause()
    some.save("/dev/null/nowhere")  # a job that is done while paused, after the last step
    wait_for(lambda: some.snapshot().notes)
    at_rest = step_of(some)
    some.save("/dev/null/nowhere")
    wait_for(lambda: len(some.snapshot().notes) == 2)
    assert step_of(some) == at_rest


def test_a_run_is_done_when_its_budget_is_spent():
    some = Run(lambda: make(steps=5))
    some.start()
    assert some.wait(60) == "done"
    assert step_of(some) == 5


@pytest.mark.parametrize("seed", range(100))
def test_any_order_of_orders_leaves_a_lawful_state_and_no_thread(seed):
    chance = random.Random(seed)
    some, expected = Run(make), "idle"
    for order in chance.choices(ORDERS, k=12):
        getattr(some, order)()
        expected = run._TRANSITIONS[order].get(expected, expected)
        assert some.state == expected
        if chance.random() < 0.2:
            time.sleep(0.01)
    some.stop(wait=60)
    assert (some.state, some.alive) == ("stopped", False)


def test_an_error_is_kept_noted_and_raised_again_by_wait():
    def broken():
        raise ValueError("no such thing <here>")

    some = Run(broken)
    some.start()
    with pytest.raises(ValueError, match="no such thing"):
        some.wait(60)
    assert some.state == "failed"
    assert some.snapshot().notes[-1] == Note(0, "ValueError: no such thing <here>", bad=True)


class Panic(BaseException):
    """What libraries in other languages raise; no Exception."""


class Dumb(Exception):
    def __str__(self):
        raise RuntimeError("no words")


ERRORS = [Panic("<panic>"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError()]
ERRORS += [Dumb(), RecursionError("too deep")]
each_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


def failing(error, step=2):
    """A trainer whose step raises."""
    trainer = make()

    class Failing(type(trainer)):
        def __next__(self):
            if self.step >= step:
                raise error
            return super().__next__()

    trainer.__class__ = Failing
    return trainer


def raise_error(error):
    raise error


@each_error
@pytest.mark.parametrize("when", ["while it is made", "at a step"])
def test_a_run_that_ends_by_anything_says_so_and_saves_and_loads_again(error, when, tmp_path):
    good = Run(make, "good")
    good.advance(3)
    good.save(tmp_path / "good")
    wait_for(lambda: "saved" in str(good.snapshot().notes))
    some = Run(lambda: failing(error) if when == "at a step" else raise_error(error))
    some.start()
    wait_for(lambda: not some.alive)
    assert some.state == "failed"
    assert some.error is error
    assert some.snapshot().notes[-1].text.startswith(type(error).__name__)
    some.save("/dev/null/nowhere")
    wait_for(lambda: "cannot save" in some.snapshot().notes[-1].text)
    some.load(tmp_path / "good")
    wait_for(lambda: "loaded" in some.snapshot().notes[-1].text)
    assert step_of(some) == 3
    assert not some.alive or wait_for(lambda: not some.alive)


@each_error
def test_a_preview_a_save_or_a_load_that_fails_by_anything_stops_no_run(error, monkeypatch):
    monkeypatch.setattr(run.checkpoint, "save", lambda *_: raise_error(error))
    monkeypatch.setattr(run.checkpoint, "load", lambda *_: raise_error(error))
    monkeypatch.setattr("qllk.training.previews.generate", lambda *_: raise_error(error))
    some = Run(make, sample_seconds=0.0)
    some.start()
    some.save("x")
    some.load("x")
    for said in ("cannot save to 'x'", "cannot load 'x'", "no sample"):
        wait_for(lambda: any(said in note.text for note in some.snapshot().notes))  # noqa: B023
    wait_steps(some, 3)
    assert some.state == "running"


def test_a_run_that_diverges_is_paused_and_goes_on_with_a_lower_rate():
    some = Run(lambda: make(lr=1e30, warmup=0.0))
    some.start()
    wait_for(lambda: some.state == "paused")
    wait_for(lambda: some.snapshot().notes)
    assert "lower learning rate" in some.snapshot().notes[-1].text
    some.send("lr", 1e-3)
    some.resume()
    wait_steps(some, 5)
    assert some.state == "running"


def test_a_new_run_of_the_same_name_stops_the_old_one_and_begins_after_it():
    old = Run(make, "same")
    old.start()
    wait_steps(old, 2)
    new = Run(make, "same")
    assert old.state == "stopped"
    new.start()
    wait_steps(new, 2)
    assert not old.alive


def test_a_run_that_is_replaced_keeps_what_it_shows_and_drops_its_trainer(tmp_path):
    old = Run(make, "same")
    old.start()
    wait_steps(old, 3)
    old.save(tmp_path / "saved")
    trainer = weakref.ref(old.trainer)
    new = Run(make, "same")
    wait_for(lambda: old.trainer is None)
    gc.collect()
    assert trainer() is None
    assert (tmp_path / "saved").exists()
    now = old.snapshot()
    assert (now.state, now.model, now.corpus) == ("stopped", "a spec of your own", "copy")
    assert now.step == now.train[-1].step >= 3
    assert now.lr > 0
    old.load(tmp_path / "saved")
    wait_for(lambda: "loaded" in old.snapshot().notes[-1].text)
    assert old.snapshot().train == []
    new.advance(1)
    assert step_of(new) == 1


def test_a_failed_run_that_is_replaced_drops_its_trainer_too():
    old = Run(lambda: failing(ValueError("no")), "same")
    old.start()
    wait_for(lambda: old.state == "failed")
    trainer = weakref.ref(old.trainer)
    Run(make, "same")
    wait_for(lambda: old.trainer is None)
    gc.collect()
    assert trainer() is None
    with pytest.raises(ValueError, match="no"):
        old.wait(1)


@pytest.mark.parametrize("number", range(20))
def test_of_runs_of_one_name_that_four_threads_make_at_once_one_is_left(number):
    made, together = [], threading.Barrier(4)

    def make_runs():
        together.wait()
        made.extend(Run(make, "same") for _ in range(10))

    threads = [threading.Thread(target=make_runs) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [some for some in made if some.state == "idle"] == [run._runs["same"]]


def test_a_run_that_is_advanced_and_started_at_once_has_one_trainer():
    made = []

    def make_slowly():
        time.sleep(0.1)
        made.append(make())
        return made[-1]

    some = Run(make_slowly)
    some.start()
    some.pause()
    some.resume()
    some.pause()
    some.advance(2)
    some.resume()
    wait_steps(some, 2)
    assert len(made) == 1


def test_a_run_that_was_stopped_is_not_advanced():
    some = Run(make)
    some.advance(1)
    some.stop()
    with pytest.raises(RuntimeError, match="the run is stopped"):
        some.advance(1)
    assert step_of(some) == 1


def test_runs_of_other_names_are_left_alone():
    one, two = Run(make, "one"), Run(make, "two")
    one.start()
    two.start()
    wait_steps(one, 2)
    wait_steps(two, 2)
    assert (one.state, two.state) == ("running", "running")


def test_advance_takes_steps_in_the_calling_thread_and_start_goes_on_from_there():
    some = Run(make)
    some.advance(4)
    assert (step_of(some), some.state, some.alive) == (4, "idle", False)
    some.start()
    wait_steps(some, 2)
    with pytest.raises(RuntimeError, match="the run is running; to advance it must be idle"):
        some.advance(1)


def test_advance_raises_what_a_step_raises():
    some = Run(lambda: make(lr=1e30, warmup=0.0))
    with pytest.raises(Diverged):
        some.advance(10)
    assert some.state == "idle"


def test_an_interrupt_never_cuts_a_step_in_half():
    some = Run(make)
    some.advance(1)
    whole = some._step

    def interrupted():
        signal.raise_signal(signal.SIGINT)
        whole()

    some._step = interrupted
    with pytest.raises(KeyboardInterrupt):
        some.advance(5)
    assert step_of(some) == 2


def test_commands_sent_before_there_is_a_trainer_act_on_the_first_step():
    some = Run(make)
    some.send("lr", 1e-4)
    some.advance(1)
    assert some.trainer.log == [[0, "lr", 1e-4]]


def test_a_refused_command_is_noted_with_its_reason_each_time():
    some = Run(make)
    some.advance(1)
    for _ in range(2):
        some.send("precision", "float8")
        some.advance(3)
    texts = [note.text for note in some.snapshot().notes if note.bad]
    assert len(texts) == 2
    assert "unknown precision 'float8'" in texts[0]


def test_a_run_that_was_changed_in_flight_is_replayed_from_its_log_bit_for_bit(tmp_path):
    live = Run(make, sample_seconds=0.01)
    live.start()
    wait_steps(live, 10)
    live.send("precision", "bfloat16")
    wait_steps(live, 10)
    live.pause()
    live.save(tmp_path / "run.safetensors")
    live.send("lr", 1e-4)
    live.resume()
    wait_steps(live, 10)
    live.send("precision", "float32")
    wait_steps(live, 10)
    live.stop(wait=60)
    names = [name for _, name, _ in live.trainer.log]
    assert names == ["precision", "lr", "precision"]
    assert live.snapshot().sample is not None

    replay = make()
    replay.replay(live.trainer.log)
    while replay.step < live.trainer.step:
        next(replay)
    assert replay.losses == live.trainer.losses
    for a, b in zip(replay.model.parameters(), live.trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_save_and_load_happen_between_steps_and_a_failure_lets_training_go_on(tmp_path):
    path = tmp_path / "run.safetensors"
    some = Run(make)
    some.start()
    wait_steps(some, 3)
    some.save(path)
    wait_for(path.exists)
    saved = step_of(some)
    some.load(tmp_path / "none")
    wait_for(lambda: any(note.bad for note in some.snapshot().notes))
    assert "no checkpoint at" in some.snapshot().notes[-1].text
    wait_steps(some, 3)
    some.pause()
    some.load(path)
    wait_for(lambda: "loaded" in some.snapshot().notes[-1].text)
    assert step_of(some) <= saved
    assert some.snapshot().train == []
    some.resume()
    wait_steps(some, 3)
    assert some.state == "running"


def saved(some, path):
    """What the run notes about a save."""
    before = len(some.snapshot().notes)
    some.save(path)
    wait_for(lambda: len(some.snapshot().notes) > before)
    return some.snapshot().notes[-1].text


def test_saving_replaces_earlier_states_of_the_run_and_no_other_file(tmp_path):
    path = tmp_path / "run"
    some = Run(make, "one")
    some.advance(3)
    assert "saved to" in saved(some, path)
    some.advance(3)
    assert "saved to" in saved(some, path)
    some.send("lr", 1e-3)
    some.advance(1)
    assert "saved to" in saved(some, path)

    content = path.read_bytes()
    others = {
        "another seed": (lambda: make(seed=1), None),
        "another command": (make, 2e-3),
        "no command": (make, None),
    }
    for name, (make_other, lr) in others.items():
        other = Run(make_other, name)
        if lr:
            other.send("lr", lr)
        other.advance(9)
        assert "is another run (a spec of your own, at step 7); choose" in saved(other, path)
    assert path.read_bytes() == content

    again = Run(make, "loaded")
    again.load(path)
    wait_for(lambda: step_of(again) == 7)
    again.advance(1)
    assert "saved to" in saved(again, path)
    assert path.read_bytes() != content


def test_an_older_state_does_not_replace_a_newer_one(tmp_path):
    ahead = Run(make, "ahead")
    ahead.advance(5)
    saved(ahead, tmp_path / "run")
    behind = Run(make, "behind")
    behind.advance(3)
    assert "it has step 5 of the same run" in saved(behind, tmp_path / "run")


FILES = {
    "a text": lambda path: path.write_text("my thesis"),
    "an empty file": lambda path: path.touch(),
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a link to a text": lambda path: (
        path.with_name("text").write_text("my thesis"),
        path.symlink_to("text"),
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_saving_over_what_is_no_checkpoint_is_refused(tmp_path, write):
    path = tmp_path / "file"
    write(path)
    before = path.lstat()
    some = Run(make)
    some.advance(1)
    assert "cannot save to" in saved(some, path)
    assert (path.lstat().st_mode, path.lstat().st_size) == (before.st_mode, before.st_size)
    assert not path.is_file() or path.read_text() in ("my thesis", "")


def test_a_tilde_is_the_home_folder_to_save_and_to_load(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    some = Run(make)
    some.advance(1)
    assert saved(some, "~/runs/one") == f"saved to {str(tmp_path / 'runs' / 'one')!r}"
    some.load("~/runs/one")
    wait_for(lambda: "loaded" in some.snapshot().notes[-1].text)
    assert not (tmp_path / "~").exists()
    for path in ("", "~no-such-user/x", "a\0b"):
        assert "cannot save to" in saved(some, path)


def test_a_command_that_waits_in_a_paused_run_is_saved_and_loaded_with_it(tmp_path):
    some = Run(make)
    some.start()
    wait_steps(some, 2)
    some.pause()
    with some._stepping:
        some.send("lr", 1e-4)
        some.trainer.submit("batch", 3, at=step_of(some) + 2)
    saved(some, tmp_path / "run")
    again = Run(make, "again")
    again.load(tmp_path / "run")
    wait_for(lambda: step_of(again))
    for one in (some, again):
        one.advance(4)
    assert [name for _, name, _ in again.trainer.log] == ["lr", "batch"]
    assert again.trainer.log == some.trainer.log
    for a, b in zip(some.trainer.model.parameters(), again.trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)


@contextlib.contextmanager
def default_float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


CONDITIONS = {
    "gradients are off": lambda: torch.set_grad_enabled(False),
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "float64": default_float64,
}


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
def test_what_an_earlier_cell_has_set_changes_no_run_in_either_thread(condition):
    def losses():
        def make_own():
            torch.manual_seed(0)
            return Recorder(Model(8, (2,), (3,), 64, 64), CORPUS, RECIPE)

        some = Run(make_own, sample_seconds=0.0)
        some.advance(3)
        some.start()
        wait_steps(some, 3)
        some.stop(wait=60)
        assert {p.dtype for p in some.trainer.model.parameters()} == {torch.float32}
        assert not any(note.bad for note in some.snapshot().notes)
        return [some.trainer.losses[step] for step in range(1, 7)]

    expected = losses()
    with condition():
        assert losses() == expected


def test_an_idle_run_can_be_loaded_and_started(tmp_path):
    first = Run(make, "first")
    first.advance(6)
    first.save(tmp_path / "run")
    wait_for(lambda: "saved" in str(first.snapshot().notes))
    other = Run(lambda: pytest.fail("not this one"), "other")
    other.load(tmp_path / "run")
    wait_for(lambda: step_of(other) == 6)
    other.start()
    wait_steps(other, 2)


def test_a_snapshot_shows_what_really_ran_and_since_when():
    some = Run(make)
    some.advance(3)
    some.send("precision", "bfloat16")
    some.advance(48)
    now = some.snapshot()
    assert now.marks == [(1, "cpu float32"), (4, "cpu bfloat16")]
    assert [step for step, _ in now.valid] == [7, 14, 21, 28, 35, 42, 49]
    assert now.baselines["uniform"] == 8.0
    assert 0 < now.baselines["best possible"] < 8.0
    assert all([p.step for p in points] == [1, 26, 51] for points in now.states.values())
