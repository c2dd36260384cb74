"""Scores of predictions and of written text, as they are usually reported.

found = score(iterate_stream(model, text))        found.perplexity, found.accuracy[5]
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_positive
from ..text.objectives import IGNORED, token_losses


class Scores(NamedTuple):
    """How well targets were predicted."""

    targets: int  # how many there were
    nats: float  # mean cross-entropy per target
    accuracy: dict[int, float]  # by k, the share of targets among the k most probable ids

    @property
    def perplexity(self) -> float:
        """exp(nats), the number of equally likely ids that would be as hard to predict."""
        return math.exp(self.nats) if self.nats < 700 else math.inf


def score(batches: Iterable[tuple[Tensor, Tensor]], tops: Collection[int] = (1, 5)) -> Scores:
    """The scores of all targets of `evaluate.iterate_batches` or `evaluate.iterate_stream`.

    Of ids that are equally probable, the one with the lower number counts as more probable.

    Shapes   of each batch: logits (B,T,vocab_size), targets (B,T), IGNORED where none counts
    Raises   ValueError when nothing is to be predicted, or a k is below 1
    """
    check_positive("score", **{f"top-{k}": k for k in tops})
    count, nats, hits = 0, 0.0, dict.fromkeys(tops, 0)
    for logits, targets in batches:
        counts = targets != IGNORED
        count += int(counts.sum())
        nats += token_losses(logits, targets).double().sum().item()
        ranks = _ranks(logits[counts], targets[counts].long())
        for k in tops:
            hits[k] += int((ranks < k).sum())
    if not count:
        raise ValueError("there is no target to predict; give a longer text")
    return Scores(count, nats / count, {k: found / count for k, found in hits.items()})


def _ranks(logits, targets):
    """How many ids are more probable than each target.  Shapes  (N,vocab), (N,) -> (N,)"""
    chosen = logits.gather(-1, targets[:, None])
    lower = torch.arange(logits.shape[-1], device=logits.device) < targets[:, None]
    return ((logits > chosen) | ((logits == chosen) & lower)).sum(dim=-1)


def distinct(ids: Sequence[int], n: int) -> float:
    """The share of different n-grams among all n-grams of a text: 1 where none comes twice.

    Longer texts have fewer of them, so compare texts of one length. 1 - distinct is the rate of
    repetition, seq-rep-n of Welleck 2019, 1908.04319.

    Paper    Li 2016, 1510.03055
    Raises   ValueError when the text has fewer than n ids
    """
    check_positive("distinct", n=n)
    ids = [int(id) for id in ids]
    grams = list(zip(*(ids[start:] for start in range(n)), strict=False))
    if not grams:
        raise ValueError(f"a text of {len(ids)} ids has no n-gram of {n} ids")
    return len(set(grams)) / len(grams)
