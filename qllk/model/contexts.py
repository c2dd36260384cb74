"""Contexts of a text as 64-bit numbers: the last n ids, or the word so far with words before it.

A context is named by a whole number n, for the last n ids, or by a name in `WORDS`. Its hash is a
polynomial of the ids modulo 2^64, so integer arithmetic alone decides it: it is the same in
training and in streaming, on every device and in every version of torch.

    last n ids    h_t = mix( sum_j (x_{t-j} + 1) M^j ),  j = 0 … n-1, without ids before the text
    word          h_t = mix( c_t ),  where c_t = sum_j (x_{b+j} + 1) M^j  over the letters b … t of
                  the unfinished word, or -(x_t + 1) at an id that is not a letter
    words-2       mix( word + p ) with p, the sum c of the last finished word
    words-3       mix( words-2 + p' ) with p', that of the word before it

Letters are the ASCII letters and digits, the underscore, and every id from 128 up, so that UTF-8
letters count. M is the multiplier of Knuth's MMIX, and mix the finaliser of splitmix64 (Steele
2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_positive

WORDS = ("word", "words-2", "words-3")
Context = int | str

_MULTIPLIER = 6364136223846793005
_LONGEST_WORD = 64  # beyond it, letters no longer change a word's hash
_LONGEST = 64  # of the contexts that are a number of ids


class ContextState(NamedTuple):
    """What the hashes of the next ids depend on. All int64; zeros before the text."""

    recent: Tensor  # (B,n-1): the last ids plus one, for the longest context of n ids
    words: Tensor  # (B,4): the unfinished word's sum and length, and the sums of two words before


def check_contexts(owner: str, contexts: Sequence[Context]) -> tuple[Context, ...]:
    """Return the contexts as a tuple, if all of them are known and different.

    Raises   ValueError naming the owner and the context
    """
    if not isinstance(contexts, list | tuple) or not contexts:
        raise ValueError(f"{owner}: contexts must be a list of one or more, got {contexts!r}")
    for context in contexts:
        if context in WORDS:
            continue
        if isinstance(context, str):
            raise ValueError(
                f"{owner}: unknown context {context!r}; choose a number of ids, or from "
                + ", ".join(WORDS)
            )
        check_positive(owner, context=context)
        if context > _LONGEST:
            raise ValueError(f"{owner}: a context of {context} ids is longer than {_LONGEST}")
    if len(set(contexts)) < len(contexts):
        raise ValueError(f"{owner}: contexts must differ from each other, got {contexts!r}")
    return tuple(contexts)


def hash_contexts(
    ids: Tensor, contexts: Sequence[Context], state: ContextState | None = None
) -> tuple[Tensor, ContextState]:
    """The hash of every context at every position.

    Shapes   ids (B,T) int64  ->  hashes (B,C,T) int64, one row for each of C contexts
    State    ContextState: n + 3 numbers, for the longest context of n ids
    Cost     time O(T (n + C)), memory O(T C)
    Twin     hash_contexts_loop, equal exactly
    """
    B, T = ids.shape
    longest = max((n for n in contexts if isinstance(n, int)), default=1)
    if state is None:
        state = ContextState(ids.new_zeros(B, longest - 1), ids.new_zeros(B, 4))
    seen = torch.cat((state.recent, ids + 1), dim=1)
    found = _sum_last(seen, T, longest) if longest > 1 else {1: ids + 1}
    words = state.words
    if any(name in WORDS for name in contexts):
        chain, words = _chain_words(ids, words)
        found |= dict(zip(WORDS, chain, strict=True))
    hashes = torch.stack([mix(found[context]) for context in contexts], dim=1)
    return hashes, ContextState(seen[:, T:].clone(), words)


def _sum_last(seen, T, longest):
    """The polynomial of the last n ids for n = 1 … longest, by n.  Shapes  (B,longest-1+T)"""
    total, found = torch.zeros_like(seen[:, :T]), {}
    for j in range(longest):
        start = longest - 1 - j
        total = total + seen[:, start : start + T] * _signed(_MULTIPLIER**j)
        found[j + 1] = total
    return found


def _chain_words(ids, state):
    """What `mix` makes the hashes of WORDS from, each (B,T), and the words' state."""
    word, length, first, second = (x[:, None] for x in state.unbind(dim=1))  # each (B,1)
    letter = _is_letter(ids)
    time = torch.arange(ids.shape[1], device=ids.device)
    gap = torch.where(letter, -1, time).cummax(dim=1).values  # the last id that is no letter, or -1
    place = time - torch.where(gap < 0, -length, gap + 1)  # of a letter in its word
    powers = _powers(ids.device)[place.clamp(0, _LONGEST_WORD)]
    sums = torch.where(letter, (ids + 1) * powers, 0).cumsum(dim=1)
    outside = torch.where(gap < 0, -word, sums.gather(1, gap.clamp(min=0)))
    current = torch.where(letter, sums - outside, 0)
    # A word ends at the first id that is no letter, and the words before it move one place back.
    ends = ~letter & torch.cat((length > 0, letter[:, :-1]), dim=1)
    end = torch.where(ends, time, -1).cummax(dim=1).values
    finished, chain = current, [torch.where(letter, current, -(ids + 1))]
    words = [current, torch.where(letter, place + 1, 0)]
    for old, older in ((word, first), (first, second)):
        finished = torch.cat((old, finished[:, :-1]), dim=1).gather(1, end.clamp(min=0))
        finished = torch.where(end < 0, older, finished)
        chain.append(mix(chain[-1]) + finished)
        words.append(finished)
    return chain, torch.stack([x[:, -1] for x in words], dim=1)


def _powers(device):
    powers = [_signed(_MULTIPLIER**j) for j in range(_LONGEST_WORD)] + [0]
    return torch.tensor(powers, device=device)


def _is_letter(ids):
    lower = ids | 32  # of an ASCII letter
    digit = (ids >= ord("0")) & (ids <= ord("9"))
    return digit | ((lower >= ord("a")) & (lower <= ord("z"))) | (ids == ord("_")) | (ids >= 128)


def mix(x: Tensor) -> Tensor:
    """A bijection of the 64-bit numbers that makes every bit depend on every other.

    Shapes   any, int64
    Paper    Steele 2014, splitmix64, its finaliser
    """
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x, bits):
    """Shift right and fill with zeros: torch has no unsigned shift."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """A number modulo 2^64 as the int64 with the same bits."""
    x %= 1 << 64
    return x - (1 << 64) if x >= 1 << 63 else x


def hash_contexts_loop(
    ids: Tensor, contexts: Sequence[Context], state: ContextState | None = None
) -> tuple[Tensor, ContextState]:
    """The definition of `hash_contexts`, in Python's own whole numbers."""
    longest = max((n for n in contexts if isinstance(n, int)), default=1)
    hashes, recents, words = [], [], []
    for b, row in enumerate(ids.tolist()):
        recent = state.recent[b].tolist() if state else [0] * (longest - 1)
        word, length, first, second = state.words[b].tolist() if state else (0, 0, 0, 0)
        for x in row:
            recent.append(x + 1)
            if _is_letter(torch.tensor(x)):
                power = _MULTIPLIER**length if length < _LONGEST_WORD else 0
                word, length, current = word + (x + 1) * power, length + 1, None
            else:
                if length:
                    word, length, first, second = 0, 0, word, first
                current = -(x + 1)
            chain = [word if current is None else current]
            chain.append(_mix_loop(chain[0]) + first)
            chain.append(_mix_loop(chain[1]) + second)
            found = dict(zip(WORDS, chain, strict=True))
            for n in filter(lambda n: isinstance(n, int), contexts):
                found[n] = sum(c * _MULTIPLIER**j for j, c in enumerate(recent[: -n - 1 : -1]))
            hashes.append([_signed(_mix_loop(found[context])) for context in contexts])
            recent = recent[len(recent) - longest + 1 :]
        recents.append(recent)
        words.append([_signed(x) for x in (word, length, first, second)])
    shape = (*ids.shape, len(contexts))
    after = ContextState(torch.tensor(recents).view(len(ids), -1), torch.tensor(words))
    return torch.tensor(hashes).view(shape).transpose(1, 2), after


def _mix_loop(x):
    x %= 1 << 64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
    x = (x ^ x >> 27) * 0x94D049BB133111EB % (1 << 64)
    return x ^ x >> 31
