"""Synthetic texts: the floor that each task claims is what its best predictor pays."""

import math
from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest

from qllk.text.corpora import corpus as find
from qllk.text.corpora import task
from qllk.text.tasks import TASKS, asked_digits, in_words, make_task, mood

LETTERS = set(b"abcdefghijklmnopqrstuvwxyz")


def whole(name, size, seed=0):
    """The text as rows can be cut from it, and the floor in nats per byte."""
    corpus = task(name, size, seed)
    floor = corpus.floor
    return np.concatenate((corpus.train, corpus.valid)).tobytes(), floor


def entropy(counts):
    """Nats per symbol of what these counts were counted from."""
    numbers = np.array(list(counts.values()))
    shares = numbers / numbers.sum()
    return float(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_the_same_text_for_the_same_seed_only(name):
    assert whole(name, 3000) == whole(name, 3000)
    assert whole(name, 3000)[0] != whole(name, 3000, seed=1)[0]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_holds_out_its_last_tenth(name):
    corpus = task(name, 3000)
    floor = corpus.floor
    assert (len(corpus.train), len(corpus.valid)) == (2700, 300)
    assert corpus.train.dtype == np.uint8
    assert 0 <= floor <= math.log(256)
    assert corpus.source == f"task:{name}:3000:0"


def test_noise_has_all_bytes_equally_often_and_independent():
    text, floor = whole("noise", 1 << 20)
    assert floor == math.log(256)
    assert entropy(Counter(text)) == pytest.approx(floor, abs=1e-3)
    halves = Counter((a >> 4, b >> 4) for a, b in pairwise(text))
    assert entropy(halves) == pytest.approx(2 * math.log(16), abs=1e-3)


def test_periodic_costs_its_first_round_and_then_nothing():
    text, floor = whole("periodic", 1600)
    assert text == text[:16] * 100
    assert len(set(text[:16])) > 8
    assert floor * 1600 == pytest.approx(16 * math.log(256))
    assert whole("periodic", 4)[1] == math.log(256)


def test_copy_costs_its_letters_once():
    text, floor = whole("copy", 34 * 1000)
    rows = [text[i : i + 34] for i in range(0, len(text), 34)]
    assert all(row == row[:16] + b"|" + row[:16] + b"\n" for row in rows)
    free = b"".join(row[:16] for row in rows)
    assert set(free) == LETTERS
    assert floor == pytest.approx(entropy(Counter(free)) * len(free) / len(text), rel=1e-3)


def test_recall_costs_what_an_ideal_reader_cannot_know():
    """Row by row: pay for a key among those left, a digit, then only for which key is asked."""
    text, floor = whole("recall", 18 * 1000)
    paid = 0.0
    for start in range(0, len(text), 18):
        row = text[start : start + 18]
        given, asked = row[:8], row[9:17]
        assert row[8:9] + row[17:] == b"|\n"
        values = dict(zip(given[::2], given[1::2], strict=True))
        assert len(values) == 4
        assert set(values) <= LETTERS
        assert set(given[1::2]) <= set(b"0123456789")
        assert {key: values[key] for key in asked[::2]} == values
        assert all(values[key] == value for key, value in zip(asked[::2], asked[1::2], strict=True))
        for n in range(4):
            paid += math.log(26 - n) + math.log(10) + math.log(4 - n)
    assert floor == pytest.approx(paid / len(text), rel=1e-9)


def test_recall_asks_in_every_order_and_draws_every_digit():
    text, _ = whole("recall", 18 * 2000)
    rows = [text[i : i + 18] for i in range(0, len(text), 18)]
    orders = Counter(tuple(row[:8:2].index(key) for key in row[9:17:2]) for row in rows)
    digits = Counter(digit for row in rows for digit in row[1:8:2])
    assert entropy(orders) == pytest.approx(math.log(24), abs=0.02)
    assert entropy(digits) == pytest.approx(math.log(10), abs=0.01)


def test_markov_costs_the_entropy_of_its_next_letter_given_the_last():
    text, floor = whole("markov", 200_000)
    pairs, letters = Counter(pairwise(text)), Counter(text[:-1])
    assert floor == pytest.approx(entropy(pairs) - entropy(letters), abs=0.01)
    triples = Counter(zip(text, text[1:], text[2:], strict=False))
    assert floor == pytest.approx(entropy(triples) - entropy(pairs), abs=0.01)  # no further memory
    assert floor < entropy(letters) - 0.1


def test_lookup_asks_for_what_it_stated_at_every_order_of_distance():
    data, _ = make_task("lookup", 6 * 20_000, 0)
    positions, distances = asked_digits(data)
    stated, asked = {}, 0
    for start in range(0, len(data), 6):
        sign, key, digit = chr(data[start]), data[start + 1 : start + 5].tobytes(), data[start + 5]
        if sign == "+":
            assert key not in stated
            stated[key] = start
        else:
            assert digit == data[stated[key] + 5]
            assert positions[asked] == start + 5
            assert distances[asked] == start - stated[key]
            asked += 1
    assert asked == len(positions)
    assert asked == pytest.approx(10_000, rel=0.05)
    shares = [(distances < 6 * 2**k).mean() for k in (2, 5, 8, 11)]
    assert np.diff(shares).min() > 0.2  # evenly spread over the logarithm


def test_the_floor_of_lookup_is_what_a_reader_pays_who_knows_the_rule():
    entries = 5000
    data, floor = make_task("lookup", 6 * entries, 1)
    harmonic = np.cumsum(1 / np.arange(1, 1025))
    keys, nats = [], 0.0
    for start in range(0, len(data), 6):
        key = data[start + 1 : start + 5].tobytes()
        if data[start] == ord("+"):
            nats += math.log(26**4) + math.log(10)
            keys.append(key)
        else:
            back = len(keys) - keys.index(key)
            nats += math.log(back) + math.log(harmonic[min(len(keys), 1024) - 1])
    assert floor == pytest.approx((nats + entries * math.log(2)) / len(data), rel=0.01)


def complete(name, size):
    """The complete lines of a task, each as its two fields, and what the floor says of a line."""
    text, floor = make_task(name, size, 0)
    *lines, _ = text.tobytes().decode().split("\n")
    return [line.split("\t") for line in lines], floor * size / len(lines)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        *((0, "zero"), (13, "thirteen"), (20, "twenty"), (99, "ninety nine"), (100, "one hundred")),
        (304, "three hundred four"),
        (1000, "one thousand"),
        (520_041, "five hundred twenty thousand forty one"),
    ],
)
def test_a_number_in_words(number, words):
    assert in_words(number) == words


def test_all_numbers_are_written_differently_and_equally_likely():
    lines, nats = complete("numbers", 200_000)
    assert all(words == in_words(int(digits)) for words, digits in lines)
    assert len({in_words(number) for number in range(10_000)}) == 10_000
    assert nats == pytest.approx(math.log(1_000_000), rel=1e-3)
    thirds = Counter(int(digits) // 333_334 for _, digits in lines)
    assert entropy(thirds) == pytest.approx(math.log(3), abs=1e-2)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("day sea", 0),
        ("good day", 1),
        ("not good", -1),
        ("not not sad", 1),
        ("not day sad", -1),
    ],
)
def test_not_turns_the_mood_of_the_next_word_around(words, found):
    assert mood(words.split()) == found


def test_a_line_of_moods_costs_the_logarithm_of_how_many_there_are():
    lines, nats = complete("moods", 200_000)
    assert all((mood(words.split()) > 0) == (label == "+") for words, label in lines)
    labels = Counter(label for _, label in lines)
    assert entropy(labels) == pytest.approx(math.log(2), abs=1e-3)
    several = [mood(words) for words in product(("not", "good", "sad", "day"), repeat=6)]
    # With one word of each kind instead of six, and as many of "not": the same count by hand.
    weights = {"not": 1, "good": 6, "sad": 6, "day": 6}
    ways = (math.prod(weights[w] for w in words) for words in product(weights, repeat=6))
    count = sum(way for way, found in zip(ways, several, strict=True) if found)
    assert nats == pytest.approx(math.log(count), rel=1e-3)


def test_asked_digits_reads_whole_entries_only():
    text = np.frombuffer(b"+abcd7+wxyz1-abcd7-none3-wx", np.uint8)
    positions, distances = asked_digits(text)
    assert (positions.tolist(), distances.tolist()) == ([17], [12])


def test_an_unknown_task_lists_the_known():
    with pytest.raises(ValueError, match="unknown task 'nonsense'; choose from copy, lookup"):
        task("nonsense")


@pytest.mark.parametrize("size", [0, 1, 1 << 40])
def test_an_invalid_size_is_refused(size):
    with pytest.raises(ValueError, match=f"size of a task must lie in 2 … .*got {size}"):
        task("noise", size)


# ---------------------------------------------------------------- by name


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("task:copy", f"task:copy:{1 << 18}:0"),
        ("task:copy:4000", "task:copy:4000:0"),
        ("task:copy:4000:7", "task:copy:4000:7"),
    ],
)
def test_a_task_is_found_by_its_name(name, source):
    found = find(name)
    assert found.source == source
    assert find(found.source).fingerprint == found.fingerprint
    assert found.floor == task("copy", 4000).floor


@pytest.mark.parametrize(
    "name",
    [
        "task:",
        "task:copy:",
        "task:copy:x",
        "task:copy:-1",
        "task:copy:1:2:3",
        "task::4000",
        "task:a b",
    ],
)
def test_a_malformed_task_names_the_forms_and_the_tasks(name):
    with pytest.raises(
        ValueError, match=r"is not of the form task:NAME, .*:SEED, where NAME is .*markov"
    ):
        find(name)
    with pytest.raises(ValueError, match="is not of the form"):
        find(f"characters:{name}")


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown task 'nonsense'; choose from copy, lookup"):
        find("task:nonsense")


@pytest.mark.parametrize(("kind", "size"), [("characters", 8), ("bpe-260", 260)])
def test_a_task_in_other_ids_keeps_its_floor(monkeypatch, tmp_path, kind, size):
    monkeypatch.setenv("QLLK_CACHE", str(tmp_path))
    found = find(f"{kind}:task:markov:3000")
    assert found.source == f"{kind}:task:markov:3000:0"
    assert found.tokenizer.vocab_size == size
    assert found.floor == found.text.floor == task("markov", 3000).floor
    assert find(found.source).fingerprint == found.fingerprint


def test_real_text_has_no_floor():
    assert find("stdlib").floor is None
