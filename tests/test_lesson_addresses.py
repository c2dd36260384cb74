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


def test_positions_lead_to_the_rows_they_choose_and_rows_to_what_followed():
    diagram, text = addresses.paths_to_rows(2, 64), addresses.TEXT
    leads = dict(diagram.arrows)
    assert len(leads) == len(text)
    assert len(set(leads.values())) == 10
    assert leads["at 2"] == leads["at 9"] == leads["at 14"]
    assert diagram.boxes[leads["at 2"]].text.endswith("then a")
    assert diagram.boxes[leads["at 3"]].text.endswith("then c _")
    again = {t for t in range(len(text)) if diagram.boxes[f"at {t}"].colour}
    assert again == {t for t in range(1, 16) if text.count(text[t - 1 : t + 1]) > 1}
    assert len(diagram.boxes) == 16 + 10


def test_a_row_that_nothing_followed_says_so():
    assert addresses.paths_to_rows(2, 4096, b"ab").boxes["at 1"].text == "ab"
    texts = [box.text for box in addresses.paths_to_rows(2, 4096, b"ab").boxes.values()]
    assert any(text.endswith("then ?") for text in texts)
