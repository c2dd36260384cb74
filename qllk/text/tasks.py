"""Synthetic texts whose best possible loss, the floor, is known.

Each generator returns the bytes and the floor in nats per byte, averaged over all positions.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter

import numpy as np

from ..checks import look_up


def _noise(size, rng):
    """Uniform random bytes: nothing to learn. A loss below ln 256 = 5.545 is a leak."""
    return rng.integers(0, 256, size), math.log(256)


def _periodic(size, rng, period=16):
    """One random string, repeated: it costs nothing after the first period."""
    text = np.resize(rng.integers(0, 256, period), size)
    return text, math.log(256) * min(1.0, period / size)


def _copy(size, rng, length=16):
    """Random letters, a bar, the same letters, a newline: half of it can be predicted."""
    rows = -(-size // (2 * length + 2))
    letters = rng.integers(ord("a"), ord("z") + 1, (rows, length))
    bar, end = np.full((rows, 1), ord("|")), np.full((rows, 1), ord("\n"))
    text = np.concatenate((letters, bar, letters, end), axis=1)
    return text.ravel()[:size], math.log(26) * length / (2 * length + 2)


def _recall(size, rng, pairs=4):
    """Multi-query recall: pairs of a letter and a digit, then each letter again with its digit.

    Arora 2023, 2312.04927, with letters drawn without replacement in each row.
    """
    rows = -(-size // (4 * pairs + 2))
    keys = rng.permuted(np.tile(np.arange(26), (rows, 1)), axis=1)[:, :pairs] + ord("a")
    values = rng.integers(ord("0"), ord("9") + 1, (rows, pairs))
    order = rng.permuted(np.tile(np.arange(pairs), (rows, 1)), axis=1)
    asked = np.take_along_axis(keys, order, 1), np.take_along_axis(values, order, 1)
    bar, end = np.full((rows, 1), ord("|")), np.full((rows, 1), ord("\n"))
    given = np.stack((keys, values), axis=2).reshape(rows, -1)
    answers = np.stack(asked, axis=2).reshape(rows, -1)
    text = np.concatenate((given, bar, answers, end), axis=1).ravel()[:size]
    shuffles = math.lgamma(26 + 1) - math.lgamma(26 - pairs + 1) + math.lgamma(pairs + 1)
    return text, (shuffles + pairs * math.log(10)) / (4 * pairs + 2)


def _markov(size, rng, symbols=8):
    """A first-order Markov chain over a few letters; the floor is its entropy rate."""
    moves = rng.dirichlet(np.full(symbols, 0.5), symbols)
    steps = moves.cumsum(axis=1)
    steps[:, -1] = 1.0
    rows, state, text = steps.tolist(), 0, []
    for draw in rng.random(size).tolist():
        state = bisect(rows[state], draw)
        text.append(state)
    stationary = np.linalg.matrix_power(moves, 4096)[0]
    entropy = -(stationary[:, None] * moves * np.log(np.maximum(moves, 1e-300))).sum()
    return np.array(text) + ord("a"), float(entropy)


_KEY, _DEPTH = 4, 1024  # letters of a key, and how many keys back a digit is asked for at most


def _lookup(size, rng):
    """A list of keys with their digits, each key asked again after any number of others.

    "+abcd7" states a digit, "-abcd7" asks for it: half of the entries ask for the key that was
    stated k keys ago, with a probability proportional to 1/k up to 1,024. So a digit is asked
    for equally often at every order of magnitude of distance.
    """
    entries = -(-size // (_KEY + 2))
    numbers = rng.permutation(26**_KEY)[: min(entries, 26**_KEY)]
    letters = numbers[:, None] // 26 ** np.arange(_KEY) % 26 + ord("a")
    digits = rng.integers(ord("0"), ord("9") + 1, len(numbers))
    asks, draws = rng.random(entries) < 0.5, rng.random(entries)
    harmonic = (1 / np.arange(1, _DEPTH + 1)).cumsum()
    entropies = (
        np.log(harmonic)
        + (np.log(np.arange(1, _DEPTH + 1)) / np.arange(1, _DEPTH + 1)).cumsum() / harmonic
    )
    chosen, stated, nats = np.empty(entries, int), 0, 0.0
    for entry in range(entries):
        depth = min(stated, _DEPTH)
        if depth == 0 or not asks[entry]:
            asks[entry] = False
            chosen[entry], stated = stated % len(numbers), stated + 1
            nats += math.log(26**_KEY) + math.log(10)
        else:
            back = int(np.searchsorted(harmonic, draws[entry] * harmonic[depth - 1]))
            chosen[entry] = (stated - 1 - min(back, depth - 1)) % len(numbers)
            nats += entropies[depth - 1]
    signs = np.where(asks, ord("-"), ord("+"))[:, None]
    text = np.concatenate((signs, letters[chosen], digits[chosen, None]), axis=1)
    return text.ravel()[:size], (nats + entries * math.log(2)) / (entries * (_KEY + 2))


def asked_digits(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a text of the task "lookup" asks for a digit, and how far back it was stated.

    Shapes   text (n,) uint8, starting with an entry  ->  positions (m,), distances in bytes (m,)
    """
    width = _KEY + 2
    entries = text[: len(text) // width * width].reshape(-1, width)
    last: dict[bytes, int] = {}
    positions, distances = [], []
    for number, entry in enumerate(entries):
        key = entry[1:-1].tobytes()
        if entry[0] == ord("+"):
            last[key] = number
        elif key in last:
            positions.append(number * width + width - 1)
            distances.append((number - last[key]) * width)
    return np.array(positions), np.array(distances)


_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBERS = 1_000_000


def in_words(number: int) -> str:
    """A number below a million in English words."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f" {_ONES[ones]}" if ones else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    count, rest = divmod(number, size)
    return f"{in_words(count)} {name}" + (f" {in_words(rest)}" if rest else "")


def _numbers(size, rng):
    """A toy language to translate: numbers in words, a tab, and in digits. All are equally likely,
    so that a line costs the logarithm of their count.
    """
    rows, length = [], 0
    while length < size:
        number = int(rng.integers(_NUMBERS))
        rows.append(f"{in_words(number)}\t{number}\n")
        length += len(rows[-1])
    text = np.frombuffer("".join(rows).encode()[:size], np.uint8)
    return text, len(rows) * math.log(_NUMBERS) / length


_GOOD = ("good", "nice", "fine", "warm", "glad", "kind")
_BAD = ("poor", "sad", "cold", "mean", "dull", "grim")
_PLAIN = ("day", "man", "sea", "sky", "road", "tree")
_WORDS = dict.fromkeys(("not", *_PLAIN), 0) | dict.fromkeys(_GOOD, 1) | dict.fromkeys(_BAD, -1)
_LINE = 6  # words of a line to classify


def mood(words: list[str]) -> int:
    """The good words less the bad ones, where "not" turns the word after it around."""
    before = ["", *words[:-1]]
    pairs = zip(before, words, strict=True)
    return sum(-_WORDS[word] if last == "not" else _WORDS[word] for last, word in pairs)


def _moods(size, rng):
    """Lines to classify: six words, a tab, and "+" if their mood is good, "-" if it is bad.

    All lines whose mood is one or the other are equally likely.
    """
    names, rows, length = [*_WORDS], [], 0
    while length < size:
        words = [names[i] for i in rng.integers(len(names), size=_LINE)]
        if (found := mood(words)) != 0:
            rows.append(f"{' '.join(words)}\t{'+' if found > 0 else '-'}\n")
            length += len(rows[-1])
    text = np.frombuffer("".join(rows).encode()[:size], np.uint8)
    return text, len(rows) * math.log(_count_moods()) / length


def _count_moods() -> int:
    """How many different lines have a mood."""
    ways = Counter({("", 0): 1})  # the last word's kind and the mood so far -> number of beginnings
    for _ in range(_LINE):
        longer: Counter = Counter()
        for (last, so_far), count in ways.items():
            for word, value in _WORDS.items():
                kind = word if word == "not" else ""
                longer[kind, so_far + (-value if last == "not" else value)] += count
        ways = longer
    return sum(count for (_, found), count in ways.items() if found)


MAX_TASK_BYTES = 1 << 23  # up to 100 bytes of memory are needed for each
TASKS = {
    "noise": _noise,
    "periodic": _periodic,
    "copy": _copy,
    "recall": _recall,
    "lookup": _lookup,
    "markov": _markov,
    "numbers": _numbers,
    "moods": _moods,
}


def make_task(name: str, size: int, seed: int) -> tuple[np.ndarray, float]:
    """The text of a task and its floor. `corpora.task` makes a corpus of it.

    Shapes   -> text (size,) uint8, floor in nats per byte
    Raises   ValueError when there is no such task, or the size is not one from 2 bytes to 8 MiB
    """
    make = look_up(TASKS, name, "task")
    if not 2 <= size <= MAX_TASK_BYTES:
        raise ValueError(f"the size of a task must lie in 2 … {MAX_TASK_BYTES} bytes, got {size}")
    text, floor = make(size, np.random.default_rng(seed))
    return text.astype(np.uint8), floor
