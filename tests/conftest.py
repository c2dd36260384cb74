"""One thread, one seed: a test gives the same numbers alone, in company and in any order."""

import signal

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_seed():
    torch.manual_seed(0)


# Whoever starts the tests in the background leaves them deaf to Ctrl-C, which some of them press.
signal.signal(signal.SIGINT, signal.default_int_handler)
