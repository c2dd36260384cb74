"""Several processes give what one gives: data-parallel training, and one sequence in pieces."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parallel_worker import STEPS, Case

from qllk.text.objectives import Batch
from qllk.training import parallel
from qllk.training.parallel import Processes
from qllk.training.recipe import Recipe

HERE = Path(__file__).parent
CASES = [
    "qllk-3-nano/ddp/1/float64",
    "qllk-3-nano/ddp/2/float64",
    "qllk-2-nano/fsdp/2/float64",
    "gpt2-nano/ddp/2/float64",
    "gpt2-nano/fsdp/1/float64",
    "swa-mla-nano/ddp/1/float64",
    "swa-mla-nano/fsdp/1/float64",
    "bert-nano/ddp/1/float64",
    "t5-nano/ddp/1/float64",
    "t5-nano/fsdp/2/float64",
    "qllk-3-nano/ddp/1/float32",
    "gpt2-nano/fsdp/1/float32",
]
PIECES = [
    "hybrid",
    "delta and folds",
    "rotary positions",
    "patches of 3",
    "recall",
    "n-grams, recall and attention",
]


def torchrun(world, *arguments, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world)]
    return subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=280,
        **options,
    )


def answer(world, *arguments):
    found = torchrun(world, str(HERE / "parallel_worker.py"), *arguments)
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_give_the_losses_of_one(world):
    found = answer(world, "train", *CASES)
    for name in CASES:
        case = Case(name)
        expected = case.losses()
        assert len(set(expected)) == STEPS + 1
        close = 1e-10 if case.dtype == torch.float64 else 1e-5
        assert found[name] == pytest.approx(expected, abs=close), name


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_a_sequence_cut_over_processes_gives_the_logits_and_gradients_of_one(world):
    answer(world, "pieces", *PIECES)


@pytest.mark.parametrize("world", range(1, 14))
@pytest.mark.parametrize("rows", [13, 16, 29])
def test_the_shares_of_all_processes_are_disjoint_and_complete(world, rows):
    batch = Batch((torch.arange(rows)[:, None],), torch.arange(rows)[:, None])
    shares = [Processes(rank, world).share(tuple(batch)) for rank in range(world)]
    seen = [row for (ids,), _ in shares for row in ids.flatten().tolist()]
    assert sorted(seen) == list(range(rows))
    assert all(torch.equal(ids, targets) for (ids,), targets in shares)
    sizes = [len(targets) for _, targets in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_process_alone_adds_up_its_own_numbers():
    alone = parallel.current()
    assert alone == Processes(0, 1)
    assert alone.leads
    assert not Processes(1, 2).leads
    assert (alone.add_up(2.5, "cpu"), alone.largest(2.5, "cpu")) == (2.5, 2.5)
    with parallel.joined("cpu"):
        assert parallel.current() == alone


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parallel": "tensor"}, "parallel must be one of ddp, fsdp, got 'tensor'"),
        ({"batch": 2}, "3 processes with 1 micro-batches each need as many rows, but a step has 2"),
        ({"batch": 5, "accumulate": 2}, "3 processes with 2 micro-batches .* a step has 5"),
        ({"parallel": "fsdp", "batch": 6}, "cannot split tables with sparse gradients"),
    ],
)
def test_what_processes_cannot_do_together_is_refused_in_words(changes, words, monkeypatch):
    monkeypatch.setattr(parallel, "current", lambda: Processes(0, 3))
    table = torch.nn.Embedding(5, 3, sparse=True)
    with pytest.raises(ValueError, match=words):
        parallel.check(table, Recipe(**changes), 1)
