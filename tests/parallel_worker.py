"""Run by torchrun in tests/test_parallel.py: trains, or reads pieces, in each process.

parallel_worker.py train CASE ...        prints the losses of each case, from the first process
parallel_worker.py pieces NAME ...       compares with one process, in every process
parallel_worker.py costs ENGINE ...      prints the parameters, the bytes that the first process
                                         holds, and those that each sends in a step
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from helpers import TINY, built, same
from test_laws import SPECS
from torch.distributed.tensor import DTensor

import qllk
from qllk.model.families import build, count_parameters
from qllk.spec import Spec
from qllk.text.objectives import token_losses
from qllk.training import parallel
from qllk.training.questions import fit_vocabulary

STEPS = 8


class Case:
    """A training run by the words of its name: preset, engine, micro-batches, dtype."""

    def __init__(self, name):
        self.preset, self.engine, accumulate, dtype = name.split("/")
        self.accumulate, self.dtype = int(accumulate), getattr(torch, dtype)

    def losses(self):
        """The loss of each step, and at the end on the held-out text."""
        text = qllk.corpus("task:markov:20000:0")
        spec = fit_vocabulary(TINY[self.preset], 24, text.tokenizer)
        recipe = qllk.Recipe(
            steps=STEPS,
            batch=8,
            window=24,
            accumulate=self.accumulate,
            carry=1 if self.accumulate > 1 else 2,
            parallel=self.engine,
            validate_bytes=400,
        )
        trainer = qllk.Trainer(build(spec, seed=0).to(self.dtype), text, recipe)
        found = [record.nats for record in trainer]
        return [*found, trainer.validate()]


def pieces_equal_the_whole(name):
    """One sequence cut over all processes, unevenly: logits and gradients."""
    processes, spec = parallel.current(), SPECS[name]
    model, whole = built(spec).double(), built(spec).double()
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(3, (2, 54), generator=generator)
    ids, targets = text[:, :-1], text[:, 1:]
    cuts = [0, 1, 20, 33, 53] if processes.world == 4 else [0, 30, 53]
    at = slice(cuts[processes.rank], cuts[processes.rank + 1])
    expected = whole(ids)
    token_losses(expected, targets).sum().backward()
    piece = parallel.Piece(model, ids[:, at])
    same(piece.logits, expected[:, at])
    piece.backward(token_losses(piece.logits, targets[:, at]).sum())
    for (label, found), wanted in zip(model.named_parameters(), whole.parameters(), strict=True):
        found, wanted = (g.grad.to_dense() for g in (found, wanted))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10, msg=label)


def received():
    """The bytes that this machine has received from itself: gloo sends through the loopback."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


def costs(engine):
    spec = Spec(d_model=128, layers=6, mixers=(("softmax", {"heads": 4}),))
    text = qllk.corpus("task:markov:20000:0")
    recipe = qllk.Recipe(batch=4, window=16, parallel=engine, validate_every=1000)
    trainer = qllk.Trainer(spec, text, recipe)
    for _ in range(3):  # the first step also measures the state
        next(trainer)
    sent = []
    for _ in range(3):  # the least of them, since others may send as well
        dist.barrier()
        before = received()
        for _ in range(5):
            next(trainer)
        dist.barrier()
        sent.append((received() - before) / 5 / dist.get_world_size())
    held = 0
    for weights in trainer.model.parameters():
        moments = [value for value in trainer.optimizer.state[weights].values() if value.ndim]
        held += sum(own_part(tensor).nbytes for tensor in (weights, weights.grad, *moments))
    return count_parameters(trainer.model), held, min(sent)


def own_part(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


ASKED = {"train": lambda name: Case(name).losses(), "pieces": pieces_equal_the_whole}
ASKED["costs"] = costs


def main(what, names):
    torch.set_num_threads(1)
    with parallel.joined("cpu"):
        found = {name: ASKED[what](name) for name in names}
        if parallel.current().leads:
            print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
