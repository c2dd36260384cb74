"""Lesson 05: who meets whom."""

import torch

from qllk.lab.lessons import addresses
from qllk.lab.lessons.exercises.addresses import EXERCISES, five_ahead, last_two


def test_the_table_shows_friends_in_blue_and_strangers_in_orange():
    ((table, note),) = addresses.meet(text="abracadabra", n=2, rows=4)
    cells = torch.tensor(table.rows)
    assert set(cells.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert not cells.triu().any(), "only earlier positions"
    text, pairs = addresses.TEXT, (cells == 1).nonzero().tolist()
    assert all(text[t - 1 : t + 1] == text[s - 1 : s + 1] for t, s in pairs)
    assert (
        note.lines[1] == f"{int((cells == -1).any(dim=1).sum())} find what a stranger has written"
    )


def test_with_many_rows_there_are_no_strangers_and_longer_contexts_meet_less():
    met = []
    for n in (1, 2, 3):
        ((table, note),) = addresses.meet(text="code", n=n, rows=4096)
        assert note.lines[1].startswith("0 find"), n
        met.append(sum(map(any, table.rows)))
    assert met == sorted(met, reverse=True)
    assert len(set(met)) == 3


def test_the_probes_of_exercise_4_are_what_their_names_say():
    looks_ahead = EXERCISES[3].answer
    x = torch.arange(12)
    assert not looks_ahead(last_two, x)
    assert looks_ahead(five_ahead, x)
