"""Training objectives: from token ids to model inputs and targets.

Every objective returns a `Batch`, and one loss serves all of them:

    batch = next_token(ids)
    loss = token_losses(model(*batch.inputs), batch.targets).sum() / count_targets(batch.targets)

The mean is over the targets that count, not over rows or positions. To split a batch, add up the
sums and the counts of its parts and divide once: the mean of the parts' means differs when their
counts do.

Special ids follow the vocabulary, because bytes leave no id free. `vocab_size` is always the number
of ordinary ids, 256 for bytes; the vocabulary of the model is larger:

    objective            special ids                                      the model's vocabulary
    next_token           none                                             vocab_size
    masked_token         the mask is id vocab_size                        vocab_size + 1
    seq2seq              the decoder starts with id vocab_size            vocab_size + 1
    span_corruption      also, sentinel k is id vocab_size + 1 + k        span_vocabulary(…)
    pairs                the start is id vocab_size, padding the next     vocab_size + 2
    labels               <cls>, <sep> and padding, in this order          vocab_size + 3
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..checks import check_ids, check_same_shape


class Batch(NamedTuple):
    """The inputs of a model and the targets of its outputs."""

    inputs: tuple[Tensor, ...]  # what the model is called with, each with B rows
    targets: Tensor  # (B,T) int64, IGNORED where a position does not count

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return Batch(tuple(ids.to(device) for ids in self.inputs), self.targets.to(device))

    def micro_batches(self, count: int) -> list[Batch]:
        """Split the rows into `count` micro-batches, for gradient accumulation."""
        pieces = [ids.tensor_split(count) for ids in (*self.inputs, self.targets)]
        return [Batch(tuple(inputs), targets) for *inputs, targets in zip(*pieces, strict=True)]

    def ignore_specials(self, vocab_size: int = 256) -> Batch:
        """Ignore targets that are special ids, such as the sentinels between spans."""
        return self._replace(targets=self.targets.where(self.targets < vocab_size, IGNORED))


IGNORED = -100  # a target that does not count; the default of torch's losses


def count_targets(targets: Tensor) -> int:
    """The number of targets that are not IGNORED."""
    return (targets.long() != IGNORED).sum().item()  # in uint8, -100 would be byte 156


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each token in nats, at least in float32; 0 where the target is IGNORED.

    Shapes   logits (B,T,vocab), targets (B,T) of any integer type -> (B,T)
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten().long(), reduction="none").view(targets.shape)


# ---------------------------------------------------------------- next token


def next_token(ids: Tensor, documents: Tensor | None = None) -> Batch:
    """Predict each id from the ids before it.

    The first id of a document, which has no context, and padding do not count.

    Shapes   ids (B,T+1)   documents (B,T+1) as `pack` yields them; default: one per row
             ->  inputs, targets (B,T)
    Raises   ValueError when rows have fewer than two ids, or documents differ in shape
    """
    if ids.ndim != 2 or ids.shape[1] < 2:
        raise ValueError(
            "next_token needs ids of shape (batch, time) with at least two per row; got "
            f"{tuple(ids.shape)}"
        )
    targets = ids[:, 1:].long()
    if documents is not None:
        documents = check_same_shape("documents", documents, ids)
        read, predicted = documents[:, :-1], documents[:, 1:]
        targets = targets.where((read == predicted) & (predicted >= 0), IGNORED)
    return Batch((ids[:, :-1],), targets)


# ---------------------------------------------------------------- masked


def masked_token(
    ids: Tensor,
    generator: torch.Generator,
    *,
    rate: float = 0.15,
    vocab_size: int = 256,
    mask_id: int | None = None,
    maskable: Tensor | None = None,
) -> Batch:
    """Mask some ids and predict them from the context on both sides.

    Each id is chosen independently with probability `rate`, at least one of them all. Of the chosen
    ids, 80 % become the mask, 10 % a random ordinary id, and 10 % stay, so that the model cannot
    trust the ids it sees. Only the chosen ids count.

    Shapes   ids (B,T) below vocab_size   maskable (B,T) bool: the ids to choose from, default: all
             ->  inputs, targets (B,T)
    Options  mask_id   default: vocab_size, the first id after the vocabulary
    Paper    BERT, Devlin 2018, 1810.04805, 3.1
    Raises   ValueError for a rate outside (0, 1], ids outside the vocabulary, or a maskable of
             another shape
    """
    ids = check_ids(ids, vocab_size)
    draws = torch.rand(ids.shape, generator=generator)
    if maskable is not None:
        draws = draws.where(check_same_shape("maskable", maskable, ids), math.inf)
    chosen = (draws <= draws.min().clamp(min=_check_rate(rate))) & draws.isfinite()
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


def seq2seq(source: Tensor, target: Tensor, *, start: int = 256, pad: int | None = None) -> Batch:
    """Predict the target from the source and the target so far, by teacher forcing.

    The decoder reads the target shifted right by one position, after the `start` id: its input at
    t is the target at t - 1. Targets equal to `pad` do not count. The source is not changed; pass
    `source != pad` to the model as its text.

    Shapes   source (B,N)   target (B,T)  ->  inputs (B,N) and (B,T), targets (B,T)
    Raises   ValueError when the two have different numbers of rows
    """
    source, target = source.long(), target.long()
    if source.ndim != 2 or target.ndim != 2 or len(source) != len(target):
        raise ValueError(
            f"source and target must be (batch, time) with equally many rows; got "
            f"{tuple(source.shape)} and {tuple(target.shape)}"
        )
    shifted = F.pad(target[:, :-1], (1, 0), value=start)
    return Batch((source, shifted), target if pad is None else target.where(target != pad, IGNORED))


# ---------------------------------------------------------------- span corruption


def span_corruption(
    ids: Tensor,
    generator: torch.Generator,
    *,
    rate: float = 0.15,
    span: float = 3.0,
    vocab_size: int = 256,
) -> Batch:
    """Remove random spans, and predict them from the rest.

        ids      the quick brown fox jumps
        source   the <0> fox <1>
        target   <0> quick brown <1> jumps <2>

    In the source a sentinel replaces each span; the target lists each sentinel with its span, and
    one more sentinel ends it. The number of spans grows with the length of the row, without a cap.

    Shapes   ids (B,T) below vocab_size; each row loses L ids in n spans, where
             L, n = _span_counts(T, rate, span)
             ->  inputs (B,T-L+n) and (B,L+n+1), targets (B,L+n+1)
    Options  span   mean length of a span
    Paper    T5, Raffel 2019, 1910.10683, 3.1.4. Its code starts every row with kept ids and ends
             it with a removed span; here a row may start and end with either
    Twin     restore_spans, the exact inverse
    Raises   ValueError for a rate outside (0, 1], a span below 1, or ids outside the vocabulary
    """
    ids = check_ids(ids, vocab_size)
    B, T = ids.shape
    lost = _random_spans(B, T, generator, rate, span)
    first = lost & ~F.pad(lost[:, :-1], (1, 0))
    sentinels = vocab_size + first.cumsum(dim=1)  # (B,T): vocab_size + 1 + k from span k on
    pairs = torch.stack((sentinels, ids), dim=2)  # (B,T,2): each id, and a sentinel before it
    source = pairs[torch.stack((first, ~lost), dim=2)].view(B, -1)
    target = pairs[torch.stack((first, lost), dim=2)].view(B, -1)
    target = torch.cat((target, sentinels[:, -1:] + 1), dim=1)
    return seq2seq(source, target, start=vocab_size)


def restore_spans(source: Tensor, target: Tensor, vocab_size: int = 256) -> Tensor:
    """Undo `span_corruption`: replace each sentinel of the source by its span in the target.

    Shapes   source (N,), target (M,): one row of each  ->  ids (T,)
    Raises   ValueError when the target does not start with a sentinel, or lacks one of the source
    """
    spans: dict[int, list] = {}
    for token in target.tolist():
        if token > vocab_size:
            spans[token] = current = []
        elif spans:
            current.append(token)
        else:
            raise ValueError(
                f"a target must start with a sentinel, an id above {vocab_size}; got {token}"
            )
    sentinels = [token for token in source.tolist() if token > vocab_size]
    if missing := sorted(set(sentinels) - set(spans)):
        raise ValueError(
            f"the source has sentinel {missing[0]}, the target only {sorted(spans)}; pass the "
            "source and the target of the same row"
        )
    parts = [spans.get(token, [token]) for token in source.tolist()]
    return torch.tensor([token for part in parts for token in part], dtype=torch.long)


def _span_counts(T: int, rate: float = 0.15, span: float = 3.0) -> tuple[int, int]:
    """The number of ids that are removed from T ids, and the number of spans; both are fixed."""
    if not span >= 1.0:
        raise ValueError(f"span is the mean length of a span and must be at least 1, got {span!r}")
    lost = max(1, round(T * _check_rate(rate)))
    most = min(lost, T - lost + 1)  # a span has at least one id, and so has a gap between spans
    return lost, min(max(1, round(lost / span)), most)


def span_vocabulary(T: int, rate: float = 0.15, span: float = 3.0, vocab_size: int = 256) -> int:
    """The vocabulary that a model needs: the ordinary ids, the start id, and the sentinels."""
    return vocab_size + 1 + _span_counts(T, rate, span)[1] + 1


def _random_spans(B, T, generator, rate, span) -> Tensor:
    """True where ids are removed: every split of the removed ids into spans, and of the kept ids
    into the gaps between them, is equally likely.

    Shapes   -> (B,T) bool, each row with the two numbers of `span_counts`
    """
    lost, spans = _span_counts(T, rate, span)
    lengths = _random_split(B, lost, spans, generator)
    gaps = _random_split(B, T - lost + 2, spans + 1, generator)
    gaps[:, [0, -1]] -= 1  # the gaps at both ends may be empty
    starts = (gaps[:, :-1] + F.pad(lengths[:, :-1], (1, 0))).cumsum(dim=1)  # (B,spans)
    edges = torch.zeros(B, T + 1, dtype=torch.long)
    edges.scatter_(1, starts, 1).scatter_(1, starts + lengths, -1)
    return edges.cumsum(dim=1)[:, :-1] > 0


def _random_split(B, total, parts, generator) -> Tensor:
    """Write `total` as a random sum of `parts` numbers above 0, B times.  Shapes  -> (B,parts)"""
    order = torch.rand(B, total - 1, generator=generator).argsort(dim=1)
    cuts = order[:, : parts - 1].sort(dim=1).values + 1
    ends = F.pad(F.pad(cuts, (1, 0)), (0, 1), value=total)  # 0, the cuts, total
    return ends.diff(dim=1)


# ---------------------------------------------------------------- lines of two fields

_TAB, _NEWLINE = 9, 10


def check_lines(data: np.ndarray, window: int) -> None:
    """Check that every window of a text holds a complete line of two fields, "source TAB target".

    Shapes   data (n,) uint8
    Raises   ValueError when a line has not exactly one tab, or is longer than half a window
    """
    ends = np.flatnonzero(data == _NEWLINE)
    if len(ends) < 2:
        raise ValueError("pairs and labels need a text of lines; this one has fewer than two")
    lines = data[ends[0] + 1 : ends[-1] + 1]
    ends = ends[1:] - ends[0] - 1
    starts = np.concatenate(([0], ends[:-1] + 1))
    tabs = np.add.reduceat((lines == _TAB).astype(int), starts)
    if (tabs != 1).any():
        at = int(np.flatnonzero(tabs != 1)[0])
        line = bytes(lines[starts[at] : ends[at]][:40]).decode(errors="replace")
        raise ValueError(
            f"a line must be two fields with one tab between them, but {line!r} has {tabs[at]} tabs"
        )
    longest = int(np.diff(ends, prepend=-1).max())
    if 2 * longest > window:
        raise ValueError(
            f"the longest line has {longest} bytes, and a window of {window} may hold no complete "
            f"line; use a window of at least {2 * longest}"
        )


def pairs(ids: Tensor, *, vocab_size: int = 256) -> Batch:
    """Write the second field of each line, given the first: a sequence-to-sequence task.

        line     two four\t24\n          source   two four        target   24\n

    Every complete line of a window is a row of its own. The newline tells the end of a target.

    Shapes   ids (B,T) of bytes, with n complete lines
             ->  inputs (n,N) source, (n,M) shifted target and (n,N) bool: no padding; targets (n,M)
    """
    pad = vocab_size + 1
    fields = _complete_lines(ids)
    source, target = (_stack([pair[i] for pair in fields], pad) for i in (0, 1))
    batch = seq2seq(source, target, start=vocab_size, pad=pad)
    return Batch((*batch.inputs, source != pad), batch.targets)


def labels(ids: Tensor, *, vocab_size: int = 256) -> Batch:
    """Tell the second field of each line, a single id, from the first: classification.

        line     what a day\t+\n          input    <cls> what a day <sep>        target   +

    The answer is read where <cls> stands, and only that position counts.

    Shapes   ids (B,T) of bytes, with n complete lines
             ->  inputs (n,N), and (n,N) bool: no padding; targets (n,N)
    Paper    BERT, Devlin 2018, 1810.04805, 4.1
    Raises   ValueError when a label has another length than 1
    """
    start, end, pad = range(vocab_size, vocab_size + 3)
    fields = _complete_lines(ids)
    read = _stack(
        [F.pad(F.pad(text, (1, 0), value=start), (0, 1), value=end) for text, _ in fields], pad
    )
    targets = torch.full_like(read, IGNORED)
    for row, (text, label) in zip(targets, fields, strict=True):
        if len(label) != 2 and len(text):  # the label and the newline
            raise ValueError(
                f"a label must be a single byte, got {bytes(label[:-1].tolist())!r}; write one "
                "letter or digit after the tab"
            )
        row[0] = label[0] if len(text) else IGNORED
    return Batch((read, read != pad), targets)


def _complete_lines(ids) -> list[tuple[Tensor, Tensor]]:
    """The fields of every line that begins and ends inside its row; the second keeps its newline.

    Where there is none, such as in the rest of a text: two fields of length 0.
    """
    found = []
    for row in ids.long():
        ends = (row == _NEWLINE).nonzero()[:, 0].tolist()
        for start, end in pairwise(ends):
            line = row[start + 1 : end + 1]
            tab = int((line == _TAB).nonzero()[0])
            found.append((line[:tab], line[tab + 1 :]))
    return found or [(ids.new_empty(0).long(),) * 2]


def _stack(rows, pad):
    """Rows of different lengths as one tensor, of at least one column."""
    stacked = pad_sequence(rows, batch_first=True, padding_value=pad)
    return stacked if stacked.shape[1] else F.pad(stacked, (0, 1), value=pad)
