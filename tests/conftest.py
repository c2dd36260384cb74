"""One thread, one seed: a test gives the same numbers by itself, with others and in any order."""

import signal

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory):
    return str(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def no_learner_here(monkeypatch, shared_home):
    """Tests leave no traces in the learner's folder, nor in that of the notebooks' tests."""
    monkeypatch.setenv("QLLK_HOME", shared_home)


@pytest.fixture
def text(tmp_path):
    """The path of a small text, for command lines."""
    path = tmp_path / "text.txt"
    path.write_bytes(b"the cat sat on the mat. " * 40)
    return path


# Processes started in the background ignore Ctrl-C, which some tests press.
signal.signal(signal.SIGINT, signal.default_int_handler)
