"""Numbers in few characters, round ticks, and one colour for each kind of series."""

import itertools
import math
import random

import pytest

from qllk.study.axes import (
    BLUE,
    GREY,
    Scale,
    bar_colours,
    colour_of_kind,
    format_number,
    series_colours,
    spread,
    ticks,
)
from qllk.study.entries import RACE


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (-0.0, "0"),
        (0.01234, "0.012"),
        (-0.5, "-0.5"),
        (1.04, "1.04"),
        (23.46, "23.5"),
        (1234.5, "1,234"),
        (786_432, "786,432"),
        (999_999_999, "1G"),
        (1_048_576, "1.05M"),
        (-2.5e12, "-2.5T"),
        (1e20, "1e20"),
        (3e-7, "3e-7"),
        (math.inf, "inf"),
    ],
)
def test_a_number_is_said_in_few_letters(value, words):
    assert format_number(value) == words


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(1, 1e6, True), (0.8, 1.3, True), (3, 40, True), (0, 7.3, False), (-2, 1e5, False)],
)
def test_ticks_are_round_few_and_inside(low, high, log):
    found = ticks(Scale(low, high, log))
    assert 2 <= len(found) <= 12
    assert all(low <= value <= high for value, _ in found)
    assert len({words for _, words in found}) == len(found)


def test_ticks_of_whole_numbers_are_whole():
    assert [words for _, words in ticks(Scale(-0.2, 2.2, whole=True))] == ["0", "1", "2"]
    assert "0.5" in [words for _, words in ticks(Scale(-0.2, 2.2))]


def test_places_are_apart_and_not_beyond_the_last():
    chance = random.Random(0)
    for _ in range(200):
        wanted = sorted(chance.uniform(0, 200) for _ in range(chance.randint(1, 12)))
        places = spread(wanted, 13, 0, 200)
        assert all(b - a >= 13 - 1e-9 for a, b in itertools.pairwise(places))
        assert places[0] >= 0
        assert places[-1] <= 200
    assert spread([10, 40, 90], 13, 0, 200) == [10, 40, 90]
    assert spread([50, 50, 50, 120], 13, 0, 200) == [37, 50, 63, 120]
    assert spread([0, 1], 10, 0, 5) == [-5, 5]


# ---------------------------------------------------------------- colours

ONE_OF_EACH_KIND = [
    "attention",
    "plain sum",
    "with addresses",
    "linear attention",
    "control",
    "no memory",
    "published",
    "unigram",
]


def test_a_name_has_one_colour_in_every_chart():
    chance = random.Random(0)
    for names in (ONE_OF_EACH_KIND, list(RACE)):
        kinds = [colour_of_kind(name) for name in names]
        assert None not in kinds
        assert len(set(kinds)) == len(names)
        for _ in range(50):
            some = chance.sample([*names, "kept", "read", "width 16"], k=4)
            for name, colour in zip(some, series_colours(some), strict=True):
                assert colour_of_kind(name) in (colour, None)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("attention", ["softmax attention", "attention's cache", "table"]),
        ("plain sum", ["kernel", "the kernel", "running sum", "qllk-2", "corrected"]),
        ("with addresses", ["qllk-3", "qllk-3-nano", "your model"]),
        ("published", ["QLLK 1.1", "1.0", "as written"]),
        ("control", ["qllk-3 without recall", "qllk-2-local"]),
        ("no memory", ["qllk-3 without memory"]),
        ("unigram", ["trigram", "lzma", "ln 256", "the source's floor"]),
    ],
)
def test_these_names_tell_the_same_kind(kind, names):
    assert {colour_of_kind(name) for name in names} == {colour_of_kind(kind)}


def test_no_two_series_of_a_chart_share_a_colour():
    for names in (
        ["qllk-2", "qllk-2 with sums", "kernel", "kept", "read", "no memory", "without sums"],
        [f"layer {i}" for i in range(40)],
    ):
        assert len(set(series_colours(names))) == len(names)


def test_bars_of_one_quantity_have_one_colour_unless_they_are_kinds():
    assert bar_colours(["mean", "Conv1d", "kernel"]) == [BLUE, BLUE, BLUE]
    kinds = ["attention", "kernel", "unigram", "this model"]
    assert bar_colours(kinds) == [*map(colour_of_kind, kinds[:2]), GREY, BLUE]


def luminance(colour):
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_can_be_read_on_a_light_and_on_a_dark_page():
    light, dark = luminance("#ffffff"), luminance("#111111")
    for colour in [*series_colours("abcdefghij"), GREY]:
        own = luminance(colour)
        assert (light + 0.05) / (own + 0.05) > 2.8, colour
        assert (own + 0.05) / (dark + 0.05) > 3, colour
