"""Processes that work beside this one, all started anew, so that they are the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, process
from typing import Any


@contextmanager
def start_processes(count: int, **options: Any) -> Iterator[Executor]:
    """A pool of at most `count` processes; `options` are those of `ProcessPoolExecutor`.

    Raises   ChildProcessError, before there is work, when they cannot start, such as from a script
             without a main guard; later when one of them is ended, such as for its memory
    """
    if getattr(process.current_process(), "_inheriting", False):
        # This process is one of them, and runs a script without a main guard, which the process
        # that started it will report. Without this line multiprocessing prints a traceback.
        raise SystemExit
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), **options) as pool:
        try:
            pool.submit(int).result()
        except BrokenProcessPool:
            raise ChildProcessError(
                "the processes could not start. Each of them first runs the script that starts "
                "them, so what a script does must stand under a main guard, the line "
                "`if __name__ == '__main__':`"
            ) from None
        try:
            yield pool
        except BrokenProcessPool:
            raise ChildProcessError(
                "a process was ended in the middle of its work, perhaps because memory ran out; "
                "start fewer at a time"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)  # nobody would see their results
            raise
