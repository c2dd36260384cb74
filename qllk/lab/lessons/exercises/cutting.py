"""Exercises of lesson 17, Cut text into pieces."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from ...exercise import Case, Exercise

# ---------------------------------------------------------------- one merge


def merge(ids, pair, new):
    """Replace each `pair` of neighbouring ids by `new`, from the left: a list."""
    out, at = [], 0
    while at < len(ids):
        found = tuple(ids[at : at + 2]) == tuple(pair)
        out.append(new if found else ids[at])
        at += 2 if found else 1
    return out


def _in_words(answer, ids, pair, new):
    """The list as a text, which has no shape that could be wrong."""
    found = answer(ids, pair, new)
    return " ".join(map(str, found)) if isinstance(found, list | tuple) else found


def _texts_of_ids(rng):
    yield Case(([5, 5, 5, 2, 5, 5, 7, 5, 2, 5], (5, 5), 9))
    yield Case(([2, 1, 2, 2, 1, 1, 2], (1, 2), 256))
    yield Case(([3], (3, 3), 4))
    yield Case(([], (3, 3), 4))
    yield Case((torch.randint(3, (40,), generator=rng).tolist(), (0, 1), 3))


def _overlapping(ids, pair, new):
    out = [new if both == tuple(pair) else both[0] for both in pairwise(ids)]
    return out + ids[-1:]


def _from_the_right(ids, pair, new):
    return merge(ids[::-1], tuple(pair)[::-1], new)[::-1]


def _only_the_first(ids, pair, new):
    at = next((t for t, both in enumerate(pairwise(ids)) if both == tuple(pair)), None)
    return ids if at is None else [*ids[:at], new, *ids[at + 2 :]]


def _without_the_last(ids, pair, new):
    out, at = [], 0
    while at < len(ids) - 1:
        found = tuple(ids[at : at + 2]) == tuple(pair)
        out.append(new if found else ids[at])
        at += 2 if found else 1
    return out


def _either_order(ids, pair, new):
    out, at = [], 0
    while at < len(ids):
        found = sorted(ids[at : at + 2]) == sorted(pair)
        out.append(new if found else ids[at])
        at += 2 if found else 1
    return out


# ---------------------------------------------------------------- one unit


def bits(nats, ids, text):
    """Bits per byte from the mean loss per id in nats, the number of ids, and the text."""
    return nats * ids / len(text.encode()) / math.log(2)


def _losses(rng):
    yield Case((3.25, 5, "naïve café"))
    yield Case((1.5, 16, "abracadabra abra"))
    yield Case((6.0, 1, "日本"))
    yield Case((0.0, 3, "abc"))


# ---------------------------------------------------------------- signatures


def signature(x, a, b, p):
    """For each hash function (a x + b) mod p, the smallest hash of all numbers: x (n,) -> (m,)."""
    return ((x[:, None] * a + b) % p).min(dim=0).values


def _signature_loop(x, a, b, p):
    functions = zip(a.tolist(), b.tolist(), strict=True)
    return torch.tensor([min((n * f + s) % p for n in x.tolist()) for f, s in functions])


def _sets(rng):
    for n, m, p in ((5, 5, 101), (1, 3, 101), (12, 1, 2**31 - 1), (7, 4, 2**31 - 1)):
        x, a, b = (torch.randint(1, p, (size,), generator=rng) for size in (n, m, m))
        yield Case((x, a, b, p))


# ---------------------------------------------------------------- the leak


def leaked(train, held_out, share):
    """Which held-out texts have a near copy in training: train (N,M), held_out (V,M) -> (V,)."""
    alike = (held_out[:, None] == train).double().mean(dim=2)  # (V,N)
    return (alike >= share).any(dim=1)


def _leaked_loop(train, held_out, share):
    def near(one, other):
        equal = sum(a == b for a, b in zip(one, other, strict=True))
        return equal >= share * len(one)

    return torch.tensor(
        [any(near(one, other) for other in train.tolist()) for one in held_out.tolist()]
    )


def _splits(rng):
    train = [[1, 2, 3, 4], [5, 6, 7, 8], [1, 1, 1, 1], [2, 3, 9, 9], [4, 4, 5, 5]]
    held_out = [[1, 2, 3, 4], [5, 0, 0, 8], [0, 0, 0, 4], [9, 9, 2, 3], [0, 6, 7, 8]]
    yield Case((torch.tensor(train), torch.tensor(held_out), 0.5))
    for N, V, M, share in ((1, 1, 8, 0.5), (6, 3, 16, 0.25), (2, 5, 1, 1.0), (5, 4, 10, 0.3)):
        sizes = ((N, M), (V, M))
        yield Case((*(torch.randint(3, size, generator=rng) for size in sizes), share))


def _alike(train, held_out):
    return (held_out[:, None] == train).double().mean(dim=2)


EXERCISES = (
    Exercise(
        merge,
        cases=_texts_of_ids,
        use=_in_words,
        hints=(
            "Go through the ids with an index of your own, since not all steps are of one size.",
            "After a match go on behind both ids, else behind one.",
            "What is left to do when only one id is left?",
        ),
        mistakes={
            "After a match go on behind both ids: each id belongs to one pair at most.": (
                _overlapping
            ),
            "Of three equal ids the first two are merged: begin at the left.": _from_the_right,
            "The pair is merged wherever it stands, not only the first time.": _only_the_first,
            "The last id is lost when it belongs to no pair.": _without_the_last,
            "The order within the pair matters.": _either_order,
            "Both ids of a pair must be there, next to each other.": lambda ids, pair, new: [
                new if id in pair else id for id in ids
            ],
        },
    ),
    Exercise(
        bits,
        cases=_losses,
        hints=(
            "How much did the model pay for the whole text, in nats? Share it out over the bytes.",
            "A nat is 1 / ln 2 bits. `text.encode()` has the bytes of a text.",
        ),
        mistakes={
            "Those are nats: divide by ln 2.": lambda nats, ids, text: (
                nats * ids / len(text.encode())
            ),
            "A bit is smaller than a nat, so there are more of them: divide by ln 2.": (
                lambda nats, ids, text: nats * ids / len(text.encode()) * math.log(2)
            ),
            "Those are characters; some have several bytes.": lambda nats, ids, text: (
                nats * ids / len(text) / math.log(2)
            ),
            "That is the loss per id, in bits.": lambda nats, ids, text: nats / math.log(2),
            "The ratio is upside down: an id of several bytes shares its loss out over them.": (
                lambda nats, ids, text: nats * len(text.encode()) / ids / math.log(2)
            ),
            "That is the whole text; divide by its bytes.": lambda nats, ids, text: (
                nats * ids / math.log(2)
            ),
        },
    ),
    Exercise(
        signature,
        truth=_signature_loop,
        cases=_sets,
        hints=(
            "Hash every number with every function: a table of n rows and m columns.",
            "`x[:, None] * a + b` is the table, before the modulo.",
            "A signature has one number for each hash function: the smallest of its column.",
        ),
        mistakes={
            "Those are the largest hashes; take the smallest.": lambda x, a, b, p: (
                ((x[:, None] * a + b) % p).max(dim=0).values
            ),
            "One number for each hash function, the smallest over the text, not for each number.": (
                lambda x, a, b, p: ((x[:, None] * a + b) % p).min(dim=1).values
            ),
            "The modulo is missing, so the smallest number always wins.": lambda x, a, b, p: (
                (x[:, None] * a + b).min(dim=0).values
            ),
            "Hash first, then take the smallest: hashing shuffles the order.": lambda x, a, b, p: (
                (x.min() * a + b) % p
            ),
            "That is where the smallest hash stands; return the hash itself.": lambda x, a, b, p: (
                (x[:, None] * a + b) % p
            ).argmin(dim=0),
        },
    ),
    Exercise(
        leaked,
        truth=_leaked_loop,
        cases=_splits,
        hints=(
            "The share of equal numbers, place by place, estimates how much two texts share.",
            "`held_out[:, None] == train` compares each with each: (V, N, M).",
            "One near copy is enough: any over the texts to train on.",
        ),
        mistakes={
            "A near copy shares at least this part, so a pair exactly at it counts.": (
                lambda train, held_out, share: (_alike(train, held_out) > share).any(dim=1)
            ),
            "A single equal number is no copy; compare the share of them.": (
                lambda train, held_out, share: (_alike(train, held_out) > 0).any(dim=1)
            ),
            "Those are exact copies only.": lambda train, held_out, share: (
                _alike(train, held_out) == 1
            ).any(dim=1),
            "Those are texts to train on; the question is which held-out ones leaked.": (
                lambda train, held_out, share: (_alike(train, held_out) >= share).any(dim=0)
            ),
            "Each held-out text is a copy of itself; compare with the texts to train on.": (
                lambda train, held_out, share: (_alike(held_out, held_out) >= share).any(dim=1)
            ),
            "One near copy is enough; it need not be like all texts.": (
                lambda train, held_out, share: (_alike(train, held_out) >= share).all(dim=1)
            ),
            "Compare place by place: each place has a hash function of its own.": (
                lambda train, held_out, share: (
                    (held_out[:, None, :, None] == train[:, None]).any(dim=3).double().mean(dim=2)
                    >= share
                ).any(dim=1)
            ),
        },
    ),
)
