"""Run by torchrun in tests/test_parallel.py: trains, or reads pieces, in each process.

parallel_worker.py train CASE ...        prints the losses of each case, from the first process
parallel_worker.py pieces NAME ...       compares with one process, in every process
"""

import json
import sys

import torch
from helpers import TINY, built, same
from test_laws import SPECS

import qllk
from qllk.model.families import build
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


def main(what, names):
    torch.set_num_threads(1)
    with parallel.joined("cpu"):
        if what == "train":
            found = {name: Case(name).losses() for name in names}
        else:
            found = {name: pieces_equal_the_whole(name) for name in names}
        if parallel.current().leads:
            print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
