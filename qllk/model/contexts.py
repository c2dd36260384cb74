"""Contexts of a text as 64-bit numbers: the last n ids, or the word so far with words before it.

A context is named by a whole number n, for the last n ids, or by a name in `WORDS`. Its hash h is
computed from the ids x in integer arithmetic modulo 2^64, so it is the same in training and in
streaming, on every device and in every version of torch.

    n         h_t = mix( sum_j (x_{t-j} + 1) M^j ),  j = 0 … n-1, without the ids before the text
    word      h_t = mix( c_t ),  where c_t = sum_j (x_{b+j} + 1) M^j  over the letters b … t of the
              unfinished word, or -(x_t + 1) where x_t is not a letter
    words-2   h_t = mix( h of word + p ),  with p the sum c of the last finished word, or 0
    words-3   h_t = mix( h of words-2 + q ),  with q that of the word before it, or 0

Letters are the ASCII letters and digits, the underscore, and every id from 128 up, so that UTF-8
letters count. A word has the same sum wherever it stands. M is the multiplier of Knuth's MMIX, and
mix the finaliser of splitmix64 (Steele 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_positive
from ..spec import as_contexts

WORDS = ("word", "words-2", "words-3")
Context = int | str

_MULTIPLIER = 6364136223846793005
_INVERSE = pow(_MULTIPLIER, -1, 1 << 64)  # it has one, since it is odd
_LONGEST = 64  # of the contexts that are a number of ids
_LONGEST_WORD = 64  # later letters of a word do not change its hash


class ContextState(NamedTuple):
    """What the hashes of the next ids depend on. All int64; zeros before the text."""

    recent: Tensor  # (B,n-1): the last ids plus one, for the longest context of n ids
    words: Tensor  # (B,4): the unfinished word's sum and length, and the sums of the two before it


def check_contexts(owner: str, contexts: Sequence[Context]) -> tuple[Context, ...]:
    """Return the contexts as a tuple, if each of them is known and none is there twice.

    Raises   ValueError naming the owner and the context
    """
    found = as_contexts(contexts, owner)
    for context in found:
        if context in WORDS:
            continue
        if isinstance(context, str):
            raise ValueError(
                f"{owner}: unknown context {context!r}; choose a number of ids, or one of "
                + ", ".join(WORDS)
            )
        check_positive(owner, context=context)
        if context > _LONGEST:
            raise ValueError(f"{owner}: a context can be {_LONGEST} ids long, got {context}")
    if len(set(found)) < len(found):
        raise ValueError(f"{owner}: contexts must differ from each other, got {contexts!r}")
    return found


def hash_contexts(
    ids: Tensor, contexts: Sequence[Context], state: ContextState | None = None
) -> tuple[Tensor, ContextState]:
    """Compute the hash of every context at every position.

    Shapes   ids (B,T) int64  ->  hashes (B,C,T) int64, for C contexts in their order
    State    ContextState, of n + 3 numbers for the longest context of n ids. It is valid
             only for the same contexts.
    Cost     time and memory O(T C + n)
    Twin     hash_contexts_loop, equal exactly
    """
    B, T = ids.shape
    lengths = [n for n in contexts if isinstance(n, int)]
    if state is None:
        longest = max(lengths, default=1)
        state = ContextState(ids.new_zeros(B, longest - 1), ids.new_zeros(B, 4))
    seen, words = torch.cat((state.recent, ids + 1), dim=1), state.words
    sums = _sum_last(seen, T, lengths)
    if len(lengths) < len(contexts):
        chain, words = _chain_words(ids, words)
        sums |= dict(zip(WORDS, chain, strict=True))
    hashes = mix(torch.stack([sums[context] for context in contexts], dim=1))
    return hashes, ContextState(seen[:, T:].clone(), words)


def _sum_last(seen, T, lengths):
    """What `mix` makes the hashes of the last n ids from, by n, each (B,T).

    M has an inverse modulo 2^64, so two running sums give it for every n, without rounding:

        sum_j (x_{t-j} + 1) M^j = M^t (P_t - P_{t-n}),  where P_t = sum_{i<=t} (x_i + 1) M^{-i}
    """
    N = seen.shape[1]
    sums = F.pad((seen * _powers(_INVERSE, N, seen.device)).cumsum(dim=1), (1, 0))
    scale = _powers(_MULTIPLIER, N, seen.device)[N - T :]
    last = sums[:, N + 1 - T :]
    return {n: (last - sums[:, N + 1 - T - n : N + 1 - n]) * scale for n in lengths}


def _powers(base, count, device):
    """Return 1, base, base^2, … modulo 2^64: (count,)."""
    steps = torch.full((count,), _signed(base), device=device)
    steps[0] = 1
    return steps.cumprod(dim=0)


def _chain_words(ids, state):
    """What `mix` makes the hashes of WORDS from, each (B,T), and the state after these ids.

    Step 0 stands for what came before: the unfinished word of the state, or a gap between words.
    """
    word, length, first, second = state.split(1, dim=1)  # each (B,1)
    letter = torch.cat((length > 0, _is_letter(ids)), dim=1)  # (B,1+T), as all that follows
    time = torch.arange(letter.shape[1], device=ids.device)
    gap = torch.where(letter, -length, time).cummax(dim=1).values  # the last step without a letter
    length = time - gap  # of the unfinished word
    # By length: nothing at a gap, one power for each letter, and nothing beyond the longest word.
    powers = F.pad(_powers(_MULTIPLIER, _LONGEST_WORD, ids.device), (1, 1))
    terms = (ids + 1) * powers[length[:, 1:].clamp(max=_LONGEST_WORD + 1)]
    sums = torch.cat((word, terms), dim=1).cumsum(dim=1)
    word = sums - F.pad(sums, (1, 0)).gather(1, gap.clamp(min=-1) + 1)
    # A word ends at the gap after it; there, the words before it move one place back.
    ends = F.pad(letter[:, :-1] & ~letter[:, 1:], (1, 0))
    end = torch.where(ends, time, 0).cummax(dim=1).values
    first = torch.cat((first, word[:, :-1]), dim=1).gather(1, end)
    second = torch.cat((second, first[:, :-1]), dim=1).gather(1, end)
    one = torch.where(letter[:, 1:], word[:, 1:], -(ids + 1))
    two = mix(one) + first[:, 1:]
    three = mix(two) + second[:, 1:]
    after = [x[:, -1] for x in (word, length, first, second)]
    return (one, two, three), torch.stack(after, dim=1)


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
    lengths = [n for n in contexts if isinstance(n, int)]
    longest = max(lengths, default=1)
    hashes, recents, words = [], [], []
    for b, row in enumerate(ids.tolist()):
        recent = state.recent[b].tolist() if state else [0] * (longest - 1)
        word, length, first, second = state.words[b].tolist() if state else (0, 0, 0, 0)
        for x in row:
            recent.append(x + 1)
            letter = x >= 128 or chr(x).isalnum() or chr(x) == "_"
            if letter:
                word += (x + 1) * _MULTIPLIER**length if length < _LONGEST_WORD else 0
                length += 1
            elif length:
                word, length, first, second = 0, 0, word, first
            one = word if letter else -(x + 1)
            two = _mix_loop(one) + first
            three = _mix_loop(two) + second
            sums = dict(zip(WORDS, (one, two, three), strict=True))
            for n in lengths:
                sums[n] = sum(c * _MULTIPLIER**j for j, c in enumerate(recent[: -n - 1 : -1]))
            hashes.append([_signed(_mix_loop(sums[context])) for context in contexts])
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
