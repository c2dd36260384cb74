"""Processes beside this one: what they are told, and what a script must do to start them."""

import os
import subprocess
import sys
import time
from concurrent import futures

import pytest

from qllk.study.pool import start_processes

SCRIPTS = {
    "by_hand.train": """
        import numpy
        from qllk.study import by_hand
        shape = by_hand.Shape(vocab_size=4, context=4, d_model=4, layers=1, heads=1)
        by_hand.train(shape, by_hand.init_weights(shape), numpy.arange(99) % 4, steps=1, batch=2,
                      processes=2)
    """,
    "race.run_race": """
        from qllk.study import race
        race.run_race("task:copy:4000", [0.1], jobs=1, folder="kept", batches=[(1, 32)])
    """,
}


def test_work_is_done_in_other_processes():
    with start_processes(1) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()


def test_a_process_that_is_ended_is_told_in_one_sentence():
    with (
        pytest.raises(ChildProcessError, match="perhaps because memory ran out"),
        start_processes(1) as pool,
    ):
        pool.submit(os._exit, 9).result()


def test_after_an_error_no_further_work_is_started():
    def work():
        with start_processes(1) as pool:
            waiting.extend(pool.submit(time.sleep, 0.01) for _ in range(300))
            raise ValueError("enough")

    waiting = []
    with pytest.raises(ValueError, match="enough"):
        work()
    futures.wait(waiting, timeout=60)
    assert waiting[-1].cancelled()


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_without_a_main_guard_is_told_what_one_is(tmp_path, name):
    lines = [line[8:] for line in SCRIPTS[name].splitlines()]
    (tmp_path / "script.py").write_text("\n".join(lines))
    ran = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=250
    )
    assert ran.returncode == 1
    assert ran.stderr.count("Traceback") == 1, "the script's own, none of the processes'"
    assert "if __name__ == '__main__':" in ran.stderr.splitlines()[-1]
    assert not (tmp_path / "kept").exists(), "nothing was done"
