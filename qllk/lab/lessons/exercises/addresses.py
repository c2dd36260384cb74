"""Exercises of lesson 05, Give the sum an address."""

from __future__ import annotations

from functools import partial

import torch

from ....model import addresses
from ...exercise import Case, Exercise, normal


def address(x, n, rows):
    """The rows that the last n bytes choose, at each position of the text x of shape (T,)."""
    found, padded = [], [0] * (n - 1) + [byte + 1 for byte in x.tolist()]
    for t in range(len(x)):
        number = 0
        for digit in padded[t : t + n]:
            number = number * 257 + digit
        found.append(number * 2654435761 % 2**32 * rows // 2**32)
    return torch.tensor(found)


def _address_by_powers(
    x,
    n,
    rows,
    *,
    read=lambda x, t, n: x[max(0, t - n + 1) : t + 1],
    plus=1,
    power=lambda age, n: age,
    choose=lambda number, rows: number * rows // 2**32,
):
    """The definition of `address`; each mistake changes one of the options."""
    found, text = [], x.tolist()
    for t in range(len(text)):
        last = read(text, t, n)[::-1]
        number = sum((byte + plus) * 257 ** power(age, n) for age, byte in enumerate(last))
        found.append(choose(number * 2654435761 % 2**32, rows))
    return torch.tensor(found)


def _reading(read):
    return lambda x, n, rows: _address_by_powers(x, n, rows, read=read)


def followed(address, x):
    """The byte that followed when each position's address occurred last, -1 if it never did."""
    table, found = {}, []
    rows, text = address.tolist(), x.tolist()
    for t in range(len(text)):
        if t > 0:
            table[rows[t - 1]] = text[t]
        found.append(table.get(rows[t], -1))
    return torch.tensor(found)


def _followed_by_search(address, x):
    """The definition of `followed`: look back for the same address."""
    found = torch.full_like(x, -1)
    for t in range(len(x)):
        for s in range(t):
            if address[s] == address[t]:
                found[t] = x[s + 1]
    return found


def _with_table(step):
    """A wrong `followed`: `step` uses the table at t, and returns what it finds."""

    def answer(address, x):
        table = {}
        rows, text = address.tolist(), x.tolist()
        return torch.tensor([step(table, rows, text, t) for t in range(len(text))])

    return answer


def _too_early(table, rows, text, t):
    if t + 1 < len(text):
        table[rows[t]] = text[t + 1]
    return table.get(rows[t], -1)


def _itself(table, rows, text, t):
    found = table.get(rows[t], -1)
    table[rows[t]] = text[t]
    return found


def _the_first(table, rows, text, t):
    if t > 0:
        table.setdefault(rows[t - 1], text[t])
    return table.get(rows[t], -1)


def _too_late(table, rows, text, t):
    found = table.get(rows[t], -1)
    if t > 0:
        table[rows[t - 1]] = text[t]
    return found


def by_sorting(address, v):
    """For each step the sum of all values so far at its address, (T,) and (T,V) to (T,V)."""
    order = address.argsort(stable=True)
    sums, rows = v[order].cumsum(dim=0), address[order]
    first = torch.searchsorted(rows, rows)  # where the values of this address begin
    before = torch.cat((torch.zeros_like(v[:1]), sums))[first]
    return torch.empty_like(v).index_copy(0, order, sums - before)


def _by_loop(address, v):
    rows = torch.zeros(1, int(address.max()) + 1, v.shape[1], dtype=v.dtype)
    return addresses.addressed_sum_loop(address[None], address[None], v[None], rows)[0][0]


def _sorted_sums(address, v):
    order = address.argsort(stable=True)
    return order, v[order].cumsum(dim=0)


def _running_on(address, v):
    order, sums = _sorted_sums(address, v)
    return torch.empty_like(v).index_copy(0, order, sums)


def _by_table(address, v):
    return (address[:, None] == address).to(v.dtype).tril() @ v


def looks_ahead(address_of, x):
    """Whether an address depends on a byte that comes after its position."""
    before = address_of(x)
    for t in range(1, len(x)):
        changed = x.clone()
        changed[t] = (changed[t] + 1) % 256
        if not torch.equal(address_of(changed)[:t], before[:t]):
            return True
    return False


def last_two(x):
    return x * 256 + torch.cat((x[:1] * 0, x[:-1]))


def own_successor(x):
    return x * 256 + torch.cat((x[1:], x[:1] * 0))


def five_ahead(x):
    return last_two(x) + torch.cat((x[5:], x[:5] * 0))


def whole_text(x):
    return x + x.sum()


def _texts(rng, *sizes):
    return [torch.randint(97, 100, (size,), generator=rng) for size in sizes]


EXERCISES = (
    Exercise(
        address,
        truth=_address_by_powers,
        cases=lambda rng: (
            Case((x, n, rows))
            for x, n, rows in zip(
                _texts(rng, 1, 7, 12, 30), (1, 2, 3, 4), (5, 16, 1, 97), strict=True
            )
        ),
        hints=(
            "Put n - 1 zeros before the text, so that each position has n numbers to read.",
            "Going from the oldest to the newest: number = number * 257 + byte + 1.",
        ),
        mistakes={
            "That reads the bytes from t on, not those up to t.": _reading(
                lambda x, t, n: x[t : t + n]
            ),
            "That reads the n bytes before t, without x[t] itself.": _reading(
                lambda x, t, n: x[max(0, t - n) : t]
            ),
            "That reads one byte too many.": _reading(lambda x, t, n: x[max(0, t - n) : t + 1]),
            "That is the same number whatever the order of the bytes.": _reading(
                lambda x, t, n: sorted(x[max(0, t - n + 1) : t + 1])
            ),
            "The newest byte is the last digit, the oldest the first.": partial(
                _address_by_powers, power=lambda age, n: n - 1 - age
            ),
            "A byte counts as byte + 1.": partial(_address_by_powers, plus=0),
            "That uses the lower digits: multiply by rows, then divide by 2**32.": partial(
                _address_by_powers, choose=lambda number, rows: number % rows
            ),
            "Rows are whole numbers: divide with `//`.": partial(
                _address_by_powers, choose=lambda number, rows: number * rows / 2**32
            ),
        },
        time_axis=0,
    ),
    Exercise(
        followed,
        truth=_followed_by_search,
        cases=lambda rng: (
            Case((torch.randint(0, 4, (T,), generator=rng), x))
            for T, x in ((len(x), x) for x in _texts(rng, 1, 2, 9, 40))
        ),
        hints=(
            "A dictionary from addresses to bytes is all the memory that you need.",
            "When x[t] has been read, what has just become known about the address of t - 1?",
            "Write first, then read: the address of t may be that of t - 1.",
        ),
        mistakes={
            "That writes x[t + 1], which has not been read at t.": _with_table(_too_early),
            "That is the byte at the earlier position, not the one that followed it.": _with_table(
                _itself
            ),
            "That keeps the first byte that followed, not the latest.": _with_table(_the_first),
            "That reads before it writes, so it misses what x[t] has just shown.": _with_table(
                _too_late
            ),
        },
        time_axis=0,
    ),
    Exercise(
        by_sorting,
        truth=_by_loop,
        cases=lambda rng: (
            Case((torch.randint(0, rows, (T,), generator=rng), normal(rng, T, V)), long=T > 64)
            for T, rows, V in ((1, 3, 2), (9, 1, 1), (12, 40, 3), (90, 7, 2))
        ),
        hints=(
            "After a stable sort by address, the values of each address stand together, in time.",
            "One cumulative sum runs through all of them. What was it where the address began?",
            "`torch.searchsorted(rows, rows)` tells where; `index_copy` puts all back in time.",
        ),
        mistakes={
            "The sum runs on from one address into the next.": _running_on,
            "The sums are still in the order of the addresses.": lambda address, v: by_sorting(
                address, v
            )[_sorted_sums(address, v)[0]],
            "Each sum misses its own step.": lambda address, v: by_sorting(address, v) - v,
            "That adds up all values, whatever their address.": lambda address, v: v.cumsum(0),
            "That compares every step with every other one.": _by_table,
        },
        time_axis=0,
        steepest=1.3,
        sized=lambda T: (torch.arange(T) % 7, torch.zeros(T, 4, dtype=torch.float64)),
    ),
    Exercise(
        looks_ahead,
        cases=lambda rng: (
            Case((address_of, x))
            for address_of, x in zip(
                (last_two, own_successor, five_ahead, whole_text),
                _texts(rng, 9, 9, 12, 6),
                strict=True,
            )
        ),
        hints=(
            "Change one byte of the text and compute the addresses once more.",
            "Which addresses may change, when the byte at t does? All others must stay.",
        ),
        mistakes={
            "The address of a byte may change with the byte itself.": lambda address_of, x: any(
                not torch.equal(address_of(x), address_of(x + (torch.arange(len(x)) == t)))
                for t in range(1, len(x))
            ),
            "It may look further ahead than one byte.": lambda address_of, x: any(
                (address_of(x) != address_of(x + (torch.arange(len(x)) == t)))[t - 1].item()
                for t in range(1, len(x))
            ),
            "No byte was changed.": lambda address_of, x: (
                not torch.equal(address_of(x), address_of(x.clone()))
            ),
        },
    ),
)
