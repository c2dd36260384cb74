"""Scores, against values worked out by hand on a text of ten ids."""

import math

import numpy as np
import pytest
import torch
from helpers import TINY
from torch import nn

from qllk.model.families import build
from qllk.probes import evaluate
from qllk.probes.scores import distinct, score
from qllk.text.objectives import IGNORED

TEXT = np.array([0, 1, 2, 0, 1, 2, 0, 1, 1, 2], dtype=np.uint8)
# After each id, the probabilities of 0, 1 and 2. The nine targets are 1 2 0 1 2 0 1 1 2.
CHANCES = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.4, 0.5], [0.25, 0.25, 0.5]], dtype=torch.float64)


class Table(nn.Module):
    """Predicts from the last id alone, so that windows and streams agree."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(CHANCES.log())

    def run(self, ids, state=None):
        return self.logits[ids.long()], state

    def forward(self, ids):
        return self.run(ids)[0]


def by_hand():
    """0 -> 1 three times, 1 -> 2 three times, 2 -> 0 two times, 1 -> 1 once."""
    nats = -(3 * math.log(0.5) + 3 * math.log(0.5) + 2 * math.log(0.25) + math.log(0.4)) / 9
    # Most probable: after 0 it is 1, after 1 it is 2, after 2 it is 2. Second: 2, 1 and, as the
    # first of two equal ones, 0.
    return nats, {1: 6 / 9, 2: 9 / 9}


@pytest.mark.parametrize("size", [1, 2, 4, 9, 100])
def test_the_scores_of_ten_ids_are_those_worked_out_by_hand(size):
    nats, accuracy = by_hand()
    for batches in (
        evaluate.iterate_batches(Table(), TEXT, size, rows=2),
        evaluate.iterate_stream(Table(), TEXT, piece=size),
    ):
        found = score(batches, tops=(1, 2))
        assert found.targets == 9
        assert found.nats == pytest.approx(nats, abs=1e-12)
        assert found.perplexity == pytest.approx(math.exp(nats), abs=1e-12)
        assert found.accuracy == pytest.approx(accuracy)


def test_targets_that_are_ignored_do_not_count():
    targets = torch.tensor([[1, IGNORED, 2]])
    logits = CHANCES.log()[None, [0, 1, 1]]
    found = score([(logits, targets)], tops=(1,))
    assert found.targets == 2
    assert found.nats == pytest.approx(math.log(2))
    assert found.accuracy == {1: 1.0}


def test_of_equal_logits_the_first_counts_as_more_probable():
    logits = torch.zeros(1, 4, 5)
    found = score([(logits, torch.tensor([[0, 1, 4, 2]]))], tops=(1, 2, 3, 5))
    assert found.accuracy == {1: 0.25, 2: 0.5, 3: 0.75, 5: 1.0}
    assert found.perplexity == pytest.approx(5)


def test_the_scores_of_a_model_agree_with_its_loss():
    model, text = build(TINY["qllk-2-nano"], seed=0), np.arange(200, dtype=np.uint8)
    found = score(evaluate.iterate_batches(model, text, 32))
    assert found.nats == pytest.approx(evaluate.nats_per_token(model, text, 32), abs=1e-6)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="there is no target to predict"):
        score([])
    with pytest.raises(ValueError, match="top-0 must be a whole number above 0, got 0"):
        score(evaluate.iterate_stream(Table(), TEXT), tops=(0,))
    with pytest.raises(ValueError, match="a text of 2 ids has no n-gram of 3 ids"):
        distinct([1, 2], 3)


def test_the_perplexity_of_a_hopeless_model_is_infinite():
    assert (
        score([(torch.tensor([[[0.0, -1e4]]]), torch.tensor([[1]]))], (1,)).perplexity == math.inf
    )


@pytest.mark.parametrize(
    ("n", "share"),
    [
        (1, 3 / 10),
        (2, 4 / 9),  # 01 12 20 11
        (3, 5 / 8),  # 012 120 201 011 112
        (10, 1.0),
    ],
)
def test_distinct_n_grams_of_ten_ids_are_those_counted_by_hand(n, share):
    assert distinct(TEXT, n) == pytest.approx(share)
