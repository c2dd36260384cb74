"""Cleaning, rules of quality, copies and near copies of texts."""

import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qllk.text import prepare
from qllk.text.prepare import (
    clean,
    drop_words,
    find_copies,
    find_faults,
    find_near_copies,
    fix_encoding,
    jaccard,
    shingles,
    strip_html,
)

GOOD = (
    "The tower of the old town stands on a hill, and whoever climbs it sees the river bend twice "
    "before it reaches the sea. Most visitors come in spring, when the wind is mild and the paths "
    "are dry.\nIn winter the gate is often closed, but the keeper opens it for those who ask, and "
    "tells them what the bells were for."
)


# ---------------------------------------------------------------- cleaning


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("e\u0301te\u0301", "été"),  # two code points or one
        ("a\r\nb\rc\u2028d\x0ce", "a\nb\nc\nd\ne"),
        ("a\u00a0b\u2009c", "a b c"),
        ("\ufeffa\x00b\x1b[1m\x7f\ud800", "ab[1m"),
        ("\n\n  if x:\t\n\t\ty  \n\n", "  if x:\n\t\ty"),
        ("a\n\n\nb\n\n\n\n\n\nc", "a\n\n\nb\n\n\nc"),
        ("e\ufeff\u0301", "é"),  # apart until the mark between them is gone
        ("日本語 👩‍🔬", "日本語 👩‍🔬"),
        ("", ""),
    ],
)
def test_what_looks_the_same_becomes_the_same_text(text, wanted):
    assert clean(text) == wanted


@given(st.text(st.characters()))
def test_cleaning_twice_changes_nothing_more(text):
    once = clean(text)
    assert clean(once) == once
    once.encode()  # no lone half of a character is left


def test_a_wrong_decoding_is_undone():
    assert fix_encoding("schön".encode().decode("latin-1")) == "schön"
    assert fix_encoding("schön") == "schön"


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("ftfy", lambda: fix_encoding("a")),
        ("datasketch", lambda: find_near_copies(["a"])),
    ],
)
def test_a_missing_package_is_named(package, call, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        call()


def test_of_a_page_only_what_it_shows_stays():
    page = (
        "<html><head><title>Bells</title><style>p {color: red}</style></head><body>"
        "<!-- hidden --><p>one &amp; <b>two</b></p><script>if (a < b) x()</script>"
        "<p>three<br>four</p></body></html>"
    )
    assert clean(strip_html(page)).split() == ["Bells", "one", "&", "two", "three", "four"]
    assert "one & two" in strip_html(page)
    assert "three\nfour" in strip_html(page)
    assert strip_html("a < b") == "a < b"
    assert strip_html("<script>x()</script>seen") == "seen"


# ---------------------------------------------------------------- quality


def test_a_good_text_breaks_no_rule():
    assert find_faults(GOOD) == {}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Too short.", "words"),
        (GOOD + " the of" * 50_000, "words"),
        (" ".join("abracadabra" + word for word in GOOD.split()), "characters per word"),
        (" ".join(f"#{word}" for word in GOOD.split()), "symbols per word"),
        (GOOD + " 17 42" * 20, "share of words with a letter"),
        (" ".join(["Xyzzy", "plugh"] * 30), "different common words"),
        ("\n".join([GOOD] * 4), "share of repeated lines"),
        ("\n".join(f"- {part}" for part in GOOD.split("\n")), "share of lines with a bullet"),
        ("\n".join(f"{line}..." for line in GOOD.split("\n")), "share of lines cut short"),
        (GOOD + " Lorem ipsum dolor.", "lorem ipsum"),
    ],
)
def test_each_rule_finds_what_it_is_for(text, rule):
    assert rule in find_faults(text)


def test_an_empty_text_is_measured_too():
    assert {"words", "different common words"} <= set(find_faults(""))


def test_rules_of_your_own_take_the_place_of_these():
    shouting = prepare.Rule("capitals", lambda text: sum(map(str.isupper, text)), most=1)
    assert find_faults("HELP", [shouting]) == {"capitals": 4}
    assert find_faults("help", [shouting]) == {}


# ---------------------------------------------------------------- copies


def test_copies_are_found_with_what_they_copy():
    assert find_copies(["a", "b", "a", "A", "a", "b"]) == {2: 0, 4: 0, 5: 1}
    assert find_copies([]) == {}
    assert find_copies(["\ud800", "\ud800"]) == {1: 0}


def test_shingles_are_runs_of_words():
    assert shingles("The old, OLD bell.", 3) == {"the old old", "old old bell"}
    assert shingles("short", 3) == {"short"}
    assert shingles("", 3) == {""}
    with pytest.raises(ValueError, match="words"):
        shingles("a", 0)


def test_the_similarity_of_sets():
    assert jaccard({1, 2, 3}, {2, 3, 4}) == 0.5
    assert jaccard(set(), set()) == 1.0
    assert jaccard({1}, set()) == 0.0


def words(seed, size=200):
    rng = random.Random(seed)
    return [f"w{rng.randrange(5000)}" for _ in range(size)]


def changed(several, at):
    return [f"new{n}" if n in at else word for n, word in enumerate(several)]


def test_near_copies_are_those_that_a_comparison_of_all_pairs_finds():
    texts = []
    for seed in range(60):
        one = words(seed)
        almost = changed(one, range(0, 200, 30))  # a similarity of 0.7
        texts += [one, changed(one, {100}), almost, one[:195]]
    texts = [" ".join(text) for text in texts]
    found = find_near_copies(texts, 0.8)
    sets, stay, wanted = [shingles(text) for text in texts], [], {}
    for n, mine in enumerate(sets):
        near = [m for m in stay if jaccard(mine, sets[m]) >= 0.8]
        if near:
            wanted[n] = near[0]
        else:
            stay.append(n)
    assert found == wanted
    assert len(found) == 120  # of each four, the second and the last


def test_what_is_not_similar_enough_is_never_found():
    one = words(1)
    half = changed(one, range(0, 200, 12))
    assert jaccard(shingles(" ".join(one)), shingles(" ".join(half))) < 0.5
    assert find_near_copies([" ".join(one), " ".join(half)], 0.8) == {}
    assert find_near_copies([" ".join(one), " ".join(half)], 0.2) == {1: 0}


def test_case_punctuation_and_layout_do_not_hide_a_copy():
    assert find_near_copies([GOOD, GOOD.upper().replace(",", " --\n"), "another text"]) == {1: 0}


@pytest.mark.parametrize("similarity", [-0.1, 1.1, "0.8"])
def test_an_impossible_similarity_is_refused(similarity):
    with pytest.raises(ValueError, match="find_near_copies: similarity"):
        find_near_copies(["a"], similarity)


def test_dropped_words_leave_the_others_in_order():
    rng = random.Random(0)
    text = " ".join(f"w{n}" for n in range(2000))
    left = drop_words(text, 0.1, rng).split()
    assert 1750 < len(left) < 1850
    assert left == sorted(left, key=lambda word: int(word[1:]))
    assert drop_words(GOOD, 0.0, rng) == GOOD
    assert drop_words(GOOD, 1.0, rng) == ""
    with pytest.raises(ValueError, match="share"):
        drop_words(GOOD, 1.5, rng)


def test_a_text_with_few_words_dropped_is_a_near_copy():
    one = " ".join(words(3))
    near = drop_words(one, 0.01, random.Random(1))
    assert near != one
    assert find_near_copies([one, near], 0.7) == {1: 0}
