"""What is asked of a model: from ids to what it reads, what it must say, and where that counts.

Every objective returns a `Batch`, so that one loss serves all of them:

    batch = next_token(ids)
    loss = byte_losses(model(*batch.inputs), batch.targets).sum() / counted(batch.targets)

The mean is over the targets that count: not over rows, and not over places. To split a batch, add
up the sums and the counts of its parts and divide once: means of parts with unequal counts have
another mean.

Special ids are placed after the vocabulary, for bytes leave no id free. `vocab_size` is always the
number of ordinary ids, 256 for bytes; the model's own vocabulary is larger:

    next_token           nothing special                                  vocab_size
    masked               the mask is id vocab_size                        vocab_size + 1
    seq2seq              the decoder starts with id vocab_size            vocab_size + 1
    span_corruption      the same, and sentinel k is vocab_size + 1 + k   span_vocabulary(…)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_ids, check_same_shape


class Batch(NamedTuple):
    """What a model is called with, and what it should answer."""

    inputs: tuple[Tensor, ...]  # (B,T) ids; of an encoder-decoder (B,N) source and (B,T) shifted
    targets: Tensor  # (B,T) int64, IGNORED where nothing is asked

    def to(self, device) -> Batch:
        return Batch(tuple(ids.to(device) for ids in self.inputs), self.targets.to(device))

    def parts(self, count: int) -> list[Batch]:
        """The rows in so many parts."""
        pieces = [ids.tensor_split(count) for ids in (*self.inputs, self.targets)]
        return [Batch(tuple(inputs), targets) for *inputs, targets in zip(*pieces, strict=True)]

    def of_text(self, vocab_size=256) -> Batch:
        """Asked for ordinary ids alone, not for the sentinels between them."""
        return self._replace(targets=self.targets.where(self.targets < vocab_size, IGNORED))


IGNORED = -100  # a target that asks for nothing; torch's own choice


def count_targets(targets) -> int:
    """How many targets ask for something."""
    return (targets.long() != IGNORED).sum().item()  # in uint8, -100 would be byte 156


def token_losses(logits, targets):
    """Surprise of each byte, in nats, in float32 at least; 0 where the target is IGNORED.

    Shapes   logits (B,T,vocab), targets (B,T) of any integer type -> (B,T)
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten().long(), reduction="none").view(targets.shape)


# ---------------------------------------------------------------- next token


def next_token(ids, documents=None) -> Batch:
    """Say each id from those before it.

    The first id of a document has nothing before it, and padding says nothing: neither counts.

    Shapes   ids (B,T+1)   documents (B,T+1) as `data.pack` yields them, none means one per row
             ->  inputs, targets (B,T)
    Raises   ValueError when there is no next id, or documents do not fit
    """
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise ValueError(
            f"the next id takes rows of two ids or more, (batch, time); got {tuple(ids.shape)}"
        )
    targets = ids[:, 1:].long()
    if documents is not None:
        documents = check_same_shape("documents", documents, ids)
        told, said = documents[:, :-1], documents[:, 1:]
        targets = targets.where((told == said) & (said >= 0), IGNORED)
    return Batch((ids[:, :-1],), targets)


# ---------------------------------------------------------------- masked


def masked_token(
    ids, generator, *, rate=0.15, vocab_size=256, mask_id=None, maskable=None
) -> Batch:
    """Hide some ids, and say what they were from both sides.

    Each id is chosen with probability `rate`, independently; if none is, one that may be. Of the
    chosen, 80 % become the mask, 10 % any ordinary id, 10 % stay: the model cannot know which of
    the ids that it sees are true. Only the chosen count.

    Shapes   ids (B,T) below vocab_size   maskable (B,T) bool: where to choose, none means anywhere
             ->  inputs, targets (B,T)
    Options  mask_id   none means vocab_size, the first after the vocabulary
    Paper    BERT, Devlin 2018, 1810.04805, 3.1
    Raises   ValueError for a rate outside (0, 1], ids outside the vocabulary, a maskable that does
             not fit
    """
    ids = check_ids(ids, vocab_size)
    luck = torch.rand(ids.shape, generator=generator)
    if maskable is not None:
        luck = luck.where(check_same_shape("maskable", maskable, ids), math.inf)
    chosen = (luck <= luck.min().clamp(min=_check_rate(rate))) & luck.isfinite()
    fate = torch.rand(ids.shape, generator=generator)
    other = torch.randint(vocab_size, ids.shape, generator=generator)
    mask = torch.full_like(ids, vocab_size if mask_id is None else mask_id)
    hidden = mask.where(fate < 0.8, other.where(fate < 0.9, ids))
    return Batch((hidden.where(chosen, ids),), ids.where(chosen, IGNORED))


def _check_rate(rate) -> float:
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"rate is the share of ids to hide and must lie in (0, 1], got {rate!r}")
    return rate


# ---------------------------------------------------------------- sequence to sequence


def seq2seq(source, target, *, start=256, pad=None) -> Batch:
    """Say the target, given the source and what was said so far: teacher forcing.

    The decoder reads the target shifted by one place, the `start` id first, so that what it reads
    at t is what it should have said at t - 1. Where the target is `pad`, nothing counts; the source
    is passed on as it is, and `source != pad` is what may be seen of it.

    Shapes   source (B,N)   target (B,T)  ->  inputs (B,N) and (B,T), targets (B,T)
    Raises   ValueError when the two have different numbers of rows
    """
    source, target = source.long(), target.long()
    if source.ndim != 2 or target.ndim != 2 or len(source) != len(target):
        raise ValueError(
            f"source and target must be (batch, time) with as many rows each; got "
            f"{tuple(source.shape)} and {tuple(target.shape)}"
        )
    shifted = F.pad(target[:, :-1], (1, 0), value=start)
    return Batch((source, shifted), target if pad is None else target.where(target != pad, IGNORED))


# ---------------------------------------------------------------- span corruption


def span_corruption(ids, generator, *, rate=0.15, span=3.0, vocab_size=256) -> Batch:
    """Take spans out, and say them from what is left.

        ids      the quick brown fox jumps
        source   the <0> fox <1>
        target   <0> quick brown <1> jumps <2>

    In the source one sentinel stands for each span; the target gives each span after its sentinel,
    and one more sentinel ends it. The longer the rows, the more spans: there is no cap.

    Shapes   ids (B,T) below vocab_size, of which each row loses as many, in as many spans:
             L, n = span_counts(T, rate, span)
             ->  inputs (B,T-L+n) and (B,L+n+1), targets (B,L+n+1)
    Options  span   mean length of a span
    Paper    T5, Raffel 2019, 1910.10683, 3.1.4. Its code begins each row with a kept span and ends
             it with a lost one; here both ends may be either
    Twin     restore_spans, the exact inverse
    Raises   ValueError for a rate outside (0, 1], a span below 1, ids outside the vocabulary
    """
    ids = check_ids(ids, vocab_size)
    B, T = ids.shape
    lost = random_spans(B, T, generator, rate=rate, span=span)
    first = lost & ~F.pad(lost[:, :-1], (1, 0))
    sentinels = vocab_size + first.cumsum(dim=1)  # (B,T): 1 + k from where span k begins
    pairs = torch.stack((sentinels, ids), dim=2)  # (B,T,2): an id and what may stand before it
    source = pairs[torch.stack((first, ~lost), dim=2)].view(B, -1)
    target = pairs[torch.stack((first, lost), dim=2)].view(B, -1)
    target = torch.cat((target, sentinels[:, -1:] + 1), dim=1)
    return seq2seq(source, target, start=vocab_size)


def restore_spans(source, target, vocab_size=256) -> Tensor:
    """What `span_corruption` took apart: put each span of the target where its sentinel stands.

    Shapes   source (N,), target (M,): one row of each  ->  ids (T,)
    Raises   ValueError when the target does not begin with a sentinel, or lacks one of the source's
    """
    spans: dict[int, list] = {}
    for token in target.tolist():
        if token > vocab_size:
            spans[token] = current = []
        elif spans:
            current.append(token)
        else:
            raise ValueError(
                f"a target begins with a sentinel, an id above {vocab_size}; got {token}"
            )
    sentinels = [token for token in source.tolist() if token > vocab_size]
    if missing := sorted(set(sentinels) - set(spans)):
        raise ValueError(
            f"the source has sentinel {missing[0]}, the target only {sorted(spans)}; give the "
            "source and the target of the same row"
        )
    parts = [spans.get(token, [token]) for token in source.tolist()]
    return torch.tensor([token for part in parts for token in part], dtype=torch.long)


def span_counts(T: int, rate=0.15, span=3.0) -> tuple[int, int]:
    """How many of T ids are lost, and in how many spans; always the same, whatever is drawn."""
    if not span >= 1.0:
        raise ValueError(f"span is the mean length of a lost span and at least 1, got {span!r}")
    lost = max(1, round(T * _check_rate(rate)))
    most = min(lost, T - lost + 1)  # each span holds an id, and one is kept between two spans
    return lost, min(max(1, round(lost / span)), most)


def span_vocabulary(T: int, rate=0.15, span=3.0, vocab_size=256) -> int:
    """The vocabulary that a model needs: ordinary ids, the start, and every row's sentinels."""
    return vocab_size + 1 + span_counts(T, rate, span)[1] + 1


def random_spans(B, T, generator, *, rate=0.15, span=3.0) -> Tensor:
    """Where ids are lost: spans and the gaps between them have random lengths, every split of
    the lost and of the kept being equally likely.

    Shapes   -> (B,T) bool, each row with exactly the two numbers of `span_counts`
    """
    lost, spans = span_counts(T, rate, span)
    lengths = _random_split(B, lost, spans, generator)
    gaps = _random_split(B, T - lost + 2, spans + 1, generator)
    gaps[:, [0, -1]] -= 1  # the gaps at both ends may be empty
    starts = (gaps[:, :-1] + F.pad(lengths[:, :-1], (1, 0))).cumsum(dim=1)  # (B,spans)
    begun = torch.zeros(B, T + 1, dtype=torch.long)
    begun.scatter_(1, starts, 1).scatter_(1, starts + lengths, -1)
    return begun.cumsum(dim=1)[:, :-1] > 0


def _random_split(B, total, parts, generator) -> Tensor:
    """B times, `total` as the sum of `parts` numbers above 0.  Shapes  -> (B,parts)"""
    order = torch.rand(B, total - 1, generator=generator).argsort(dim=1)
    cuts = order[:, : parts - 1].sort(dim=1).values + 1
    ends = F.pad(F.pad(cuts, (1, 0)), (0, 1), value=total)  # 0, the cuts, total
    return ends.diff(dim=1)
