"""A run in a thread around a trainer: its states, its commands, its errors."""

import random
import signal
import time

import pytest
import torch
from run_helpers import (  # noqa: F401 - the fixture acts on every test here
    make,
    no_thread_is_left,
    step_of,
    wait_for,
    wait_steps,
)

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
