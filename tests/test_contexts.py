"""Hashes of contexts: exact, the same for ever, and spread as evenly as chance would."""

import itertools

import pytest
import torch
from helpers import same
from torch._subclasses.fake_tensor import FakeTensorMode

from qllk.model import contexts
from qllk.model.contexts import WORDS, check_contexts, hash_contexts, hash_contexts_loop, mix

ALL = (1, 2, 3, 8, 24, 64, *WORDS)
each_context = pytest.mark.parametrize("context", ALL)


def ids_of(*texts):
    """The bytes of texts of equal length: (B,T)."""
    return torch.tensor([list(text.encode()) for text in texts])


def last(text, context):
    """The hash of one context at the end of a text."""
    return hash_contexts(ids_of(text), (context,))[0][0, 0, -1].item()


def mixed(B=3):
    """Words, digits, underscores, UTF-8, gaps of every width, a long word, ids above 255: (B,T)."""
    text = "The cat_1 sat,  on\n\n3 naïve mats – “ok”. " + "long" * 20 + " x = f(y)\0 end"
    ids = torch.tensor([*text.encode(), 300, 32, 256, 46, 511, 97])
    return torch.stack([ids.roll(7 * b) for b in range(B)])


def cut(ids, sizes, state=None, names=ALL):
    """The hashes piece by piece, and the last state."""
    pieces = []
    for piece in ids.split(sizes, dim=1):
        hashes, state = hash_contexts(piece, names, state)
        pieces.append(hashes)
    return torch.cat(pieces, dim=2), state


# ---------------------------------------------------------------- the definition


@pytest.mark.parametrize("size", [1, 2, 5, 63, 1000])
def test_hashes_and_state_in_pieces_equal_the_loop_exactly(size):
    same(cut(mixed(), size), hash_contexts_loop(mixed(), ALL), atol=0)


def test_the_loop_carries_its_state_as_well():
    first, state = hash_contexts_loop(mixed()[:, :50], ALL)
    second, state = hash_contexts_loop(mixed()[:, 50:], ALL, state)
    same((torch.cat((first, second), dim=2), state), hash_contexts(mixed(), ALL), atol=0)


@pytest.mark.parametrize("size", [3, 40])
def test_random_ids_equal_the_loop_exactly(size):
    ids = torch.randint(512, (4, 120))  # hardly a word
    letters = torch.tensor(list(b"aZ_9 .")).index_select(0, torch.randint(6, (480,))).view(4, 120)
    for given in (ids, letters):
        same(cut(given, size), hash_contexts_loop(given, ALL), atol=0)


@each_context
def test_the_hash_of_a_context_does_not_depend_on_the_others(context):
    alone, together = hash_contexts(mixed(), (context,))[0], hash_contexts(mixed(), ALL)[0]
    assert torch.equal(alone[:, 0], together[:, ALL.index(context)])


def test_the_hashes_stand_in_the_order_of_the_contexts():
    forward, backward = hash_contexts(mixed(), ALL)[0], hash_contexts(mixed(), ALL[::-1])[0]
    assert torch.equal(forward.flip(1), backward)


PINNED = {  # of the contexts 1, 3, 8, 64, word, words-2 and words-3
    "a": (
        *(0xF2F8EDE6FA70BF5F, 0xF2F8EDE6FA70BF5F, 0xF2F8EDE6FA70BF5F, 0xF2F8EDE6FA70BF5F),
        *(0xF2F8EDE6FA70BF5F, 0x2D13149ED1137C00, 0x6C81F435BE1E11C6),
    ),
    "the cat sat": (
        *(0xEF08A61A384AADEE, 0xFEFEC41880799851, 0x044013EEA2F48546, 0x44083CD8BB9798EC),
        *(0xDB65B9E3DCC4F9F3, 0x71960EA42DBF0B59, 0x74C7D09EBA0E11E3),
    ),
    "snake_case 42": (
        *(0xCB9EBFBDFE40F3F9, 0x2FF5F1095ABDF77D, 0xDC7914C5773DF446, 0x2F6B5BF827D1F986),
        *(0x2DEFABF91FBC5A0F, 0x03C1F7DF2334B982, 0x874457926FC06827),
    ),
    "naïve café": (
        *(0x702DB9AD49A9308F, 0xA9D2FBC30B78CB78, 0xE3D28FB0D52FEB84, 0x28E9FDF8FAB7CD82),
        *(0x677F4B67DA95B80D, 0x62BF5568CC2CA5B4, 0x6C8017A0FCEF9BE7),
    ),
    "x = f(y) ": (
        *(0xB4941EEF820868C7, 0x46484141F40B69E6, 0xF358B50E2F595603, 0xDBC3B89971205902),
        *(0xCDAE28333EE7B4D4, 0xD5D5691B652874CA, 0xCAB24218E4F3675D),
    ),
    "a" * 70: (
        *(0xF2F8EDE6FA70BF5F, 0x6FEC55EF31165850, 0x187DDBC800F08AE9, 0x35B3593FCF327CBF),
        *(0x35B3593FCF327CBF, 0x5C90455E900AAD5A, 0xBC8AC1F348020D2C),
    ),
}


@pytest.mark.parametrize("text", PINNED)
def test_the_hashes_of_a_text_never_change(text):
    """A change here makes every trained table of hashed contexts worthless."""
    hashes, _ = hash_contexts(ids_of(text), (1, 3, 8, 64, *WORDS))
    assert [x % 2**64 for x in hashes[0, :, -1].tolist()] == list(PINNED[text])


def test_mix_is_the_finaliser_of_splitmix64():
    """These are the first three numbers of splitmix64 for the seed 0, as published with it."""
    seeds = [n * 0x9E3779B97F4A7C15 for n in (1, 2, 3)]
    mixed = mix(torch.tensor([contexts._signed(seed) for seed in seeds]))
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [x % 2**64 for x in mixed.tolist()] == expected


def test_letters_are_ascii_letters_digits_the_underscore_and_all_ids_from_128():
    ascii_letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_"
    letters = {*map(ord, ascii_letters), *range(128, 600)}
    assert set(contexts._is_letter(torch.arange(600)).nonzero().flatten().tolist()) == letters


# ---------------------------------------------------------------- what a hash depends on


@pytest.mark.parametrize("t", [0, 30, 60, 100])
def test_a_changed_id_changes_its_own_hashes_and_no_earlier_one(t):
    before = mixed(1)
    after = before.clone()
    after[0, t] = 91 if before[0, t] != 91 else 93
    one, two = hash_contexts(before, ALL)[0], hash_contexts(after, ALL)[0]
    assert torch.equal(one[:, :, :t], two[:, :, :t])
    assert (one[:, :, t] != two[:, :, t]).all()


def test_rows_do_not_know_each_other():
    together, state = hash_contexts(mixed(), ALL)
    for b in range(3):
        alone, own = hash_contexts(mixed()[b : b + 1], ALL)
        assert torch.equal(alone[0], together[b])
        assert all(torch.equal(x[0], y[b]) for x, y in zip(own, state, strict=True))


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_a_context_of_n_ids_depends_on_exactly_those(n):
    text = "".join(chr(33 + i) for i in range(80))
    changed = [text[: 79 - back] + "~" + text[80 - back :] for back in range(80)]
    differs = [last(other, n) != last(text, n) for other in changed]
    assert differs == [back < n for back in range(80)]


def test_a_context_longer_than_the_text_is_that_of_the_text():
    assert last("abc", 3) == last("abc", 8) == last("abc", 64)
    assert last("abc", 3) != last("\0abc", 4)  # an id of zero is an id


def test_equal_words_after_different_texts_have_the_same_word_hash():
    ends = ["cat", "one cat", "x=(cat", "two  three\n\tcat", "é.cat"]
    assert len({last(text, "word") for text in ends}) == 1
    others = ["cart", "ca", "cats", "Cat", "tac", "1cat", "_cat", "écat"]
    assert len({last(text, "word") for text in (*others, "cat")}) == 9


def test_the_word_hash_grows_with_the_word():
    hashes = hash_contexts(ids_of("say words"), ("word",))[0][0, 0]
    assert hashes[4:].tolist() == [last("words"[:n], "word") for n in range(1, 6)]


def test_between_words_the_word_hash_depends_on_the_last_id_alone():
    assert last("cat,", "word") == last("a dog ran ,", "word") == last(",", "word")
    assert last("cat,", "word") != last("cat;", "word")


@pytest.mark.parametrize(
    ("text", "context", "needed"),
    [
        ("one two three four", "word", {"four"}),
        ("one two three four", "words-2", {"three", "four"}),
        ("one two three four", "words-3", {"two", "three", "four"}),
        ("one two three four.", "word", set()),
        ("one two three four.", "words-2", {"four"}),
        ("one two three four.", "words-3", {"three", "four"}),
    ],
)
def test_a_context_of_words_depends_on_exactly_those(text, context, needed):
    for word in ("one", "two", "three", "four"):
        differs = last(text.replace(word, "other"), context) != last(text, context)
        assert differs == (word in needed)


@pytest.mark.parametrize("context", WORDS)
def test_what_separates_words_does_not_matter_to_a_context_of_words(context):
    assert last("one two three", context) == last("\n one, (two)  -- three", context)


def test_contexts_of_words_know_their_order():
    assert last("one two three", "words-3") != last("two one three", "words-3")
    assert last("one two", "words-2") != last("two one", "words-2")


def test_letters_beyond_the_64th_do_not_change_a_word():
    word = "abcdefgh" * 8
    assert last(word, "word") == last(word + "x", "word") == last(word + "y" * 40, "word")
    assert last(word, "word") != last(word[:-1], "word")
    assert last(word + "x z", "words-2") == last(word + " z", "words-2")


# ---------------------------------------------------------------- the state


@pytest.mark.parametrize("names", [ALL, (5,), (1,), WORDS])
def test_the_state_has_n_plus_3_numbers_after_any_text(names):
    longest = max((n for n in names if isinstance(n, int)), default=1)
    for steps in (1, 7, 500):
        _, state = hash_contexts(torch.randint(256, (2, steps)), names)
        assert sum(x.numel() for x in state) == 2 * (longest + 3)
        for x in state:  # a view would keep the whole text alive
            assert x.untyped_storage().nbytes() == 8 * x.numel()


def test_the_state_passed_in_stays_valid():
    _, state = hash_contexts(mixed()[:, :40], ALL)
    before = [x.clone() for x in state]
    hash_contexts(mixed()[:, 40:], ALL, state)
    assert all(torch.equal(x, y) for x, y in zip(state, before, strict=True))


def test_hashes_can_be_counted_without_being_computed():
    def shapes():
        hashes, state = hash_contexts(torch.zeros(2, 100, dtype=torch.int64), ALL)
        return [tuple(x.shape) for x in (hashes, *state)]

    expected = [(2, len(ALL), 100), (2, 63), (2, 4)]
    assert shapes() == expected
    with torch.device("meta"):
        assert shapes() == expected
    with FakeTensorMode():
        assert shapes() == expected


# ---------------------------------------------------------------- names


def test_known_contexts_come_back_as_a_tuple():
    assert check_contexts("mixer", [2, 64, "word", "words-3"]) == (2, 64, "word", "words-3")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"mixer: contexts must be a list of one or more, got \[\]"),
        ("word", "mixer: contexts must be a list of one or more, got 'word'"),
        (3, "mixer: contexts must be a list of one or more, got 3"),
        (
            (2, "wrd"),
            "mixer: unknown context 'wrd'; choose a number of ids, or one of word, words-",
        ),
        ([0], "mixer: context must be a whole number above 0, got 0"),
        ([2.5], "mixer: context must be a whole number above 0, got 2.5"),
        ([True], "mixer: context must be a whole number above 0, got True"),
        ([[2]], r"mixer: context must be a whole number above 0, got \[2\]"),
        ([65], "mixer: a context can be 64 ids long, got 65"),
        ([2, "word", 2], r"mixer: contexts must differ from each other, got \[2, 'word', 2\]"),
    ],
)
def test_contexts_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        check_contexts("mixer", given)


# ---------------------------------------------------------------- collisions


COUNT = 200_000


def distinct(n):
    """Different random contexts of n ids: (COUNT,n)."""
    rows = torch.randint(256, (COUNT + 5000, n)).unique(dim=0)
    return rows[torch.randperm(len(rows))[:COUNT]]


def numbers():
    """The texts "000000", "000001", …: (COUNT,6)."""
    return torch.arange(COUNT)[:, None] // 10 ** torch.arange(5, -1, -1) % 10 + ord("0")


def keys():
    """The texts "aaaa", "aaab", … of the letters a to v: (COUNT,4)."""
    return torch.tensor(list(itertools.islice(itertools.product(range(97, 119), repeat=4), COUNT)))


TEXTS = {
    **{f"random {n}": (lambda n=n: distinct(n), n) for n in (3, 4, 8)},
    **{f"numbers {context}": (numbers, context) for context in (6, 64, *WORDS)},
    **{f"keys {context}": (keys, context) for context in (4, *WORDS)},
}


@pytest.mark.parametrize(("texts", "context"), TEXTS.values(), ids=TEXTS)
def test_different_contexts_fill_the_rows_as_chance_would(texts, context):
    hashes = hash_contexts(texts(), (context,))[0][:, 0, -1]
    assert len(hashes.unique()) == COUNT
    for rows in (2**16, 65_521):  # a power of two and a prime
        address = ((hashes >> 33) & 0x7FFFFFFF) % rows
        held, expected = address.bincount(minlength=rows).double(), COUNT / rows
        chi_square = ((held - expected) ** 2 / expected).sum().item()
        freedom = rows - 1
        assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5  # five standard deviations
