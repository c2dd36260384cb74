"""One thread, one seed: a test gives the same numbers alone, in company and in any order."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_seed():
    torch.manual_seed(0)
