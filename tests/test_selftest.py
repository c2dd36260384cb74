"""`qllk test`: one line for each check, and an exit code."""

from unittest.mock import Mock

import pytest

from qllk import selftest
from qllk.__main__ import main


def test_each_check_has_a_line_and_one_that_fails_does_not_end_the_others(monkeypatch, capsys):
    checks = {
        "a text is read": lambda: "12 bytes",
        "a model learns": Mock(side_effect=RuntimeError("no such kernel")),
        "a lesson runs": lambda: "03",
    }
    monkeypatch.setattr(selftest, "_CHECKS", checks)
    assert main(["test"]) == 1
    said = capsys.readouterr()
    first, second, third = said.out.splitlines()
    assert first.startswith("ok     a text is read: 12 bytes (")
    assert second.startswith("FAILED a model learns: RuntimeError: no such kernel (")
    assert third.startswith("ok     a lesson runs: 03 (")
    assert said.err == "qllk: 1 of 3 checks failed; `qllk doctor` may name the cause\n"


@pytest.mark.slow
def test_an_installation_in_order_passes_all_but_the_notebook(capsys):
    told = [check() for check in selftest._CHECKS.values() if check is not selftest._run_a_lesson]
    assert len(told) == 4


def test_a_model_that_breaks_the_law_is_found(monkeypatch):
    real = selftest.build

    def forgetful(*args, **kwargs):
        model = real(*args, **kwargs)
        run = model.run
        model.run = lambda ids, state=None: run(ids)
        return model

    monkeypatch.setattr(selftest, "build", forgetful)
    with pytest.raises(ArithmeticError, match="the logits differ by"):
        selftest._keep_the_law()


def test_a_training_that_learns_nothing_is_found(monkeypatch):
    monkeypatch.setattr(selftest, "Trainer", lambda *_: [Mock(bits_per_byte=8.0)] * 2)
    with pytest.raises(ArithmeticError, match=r"8\.00 bits per byte became 8\.00"):
        selftest._train()


def test_a_run_that_goes_on_differently_is_found(monkeypatch):
    real = selftest.checkpoint.load

    def load(path):
        trainer = real(path)
        next(trainer)
        return trainer

    monkeypatch.setattr(selftest.checkpoint, "load", load)
    with pytest.raises(ArithmeticError, match="step 6 has"):
        selftest._save_and_resume()
