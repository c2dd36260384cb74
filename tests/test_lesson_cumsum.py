"""Lesson 03: the pictures of its heads and of its scan."""

import torch

from qllk.lab.lessons import cumsum
from qllk.model.mixers import LinearAttention
from qllk.probes import state_numbers
from qllk.study.axes import BLUE


def test_the_kept_entries_are_as_many_as_the_numbers_of_the_state():
    (pictures,) = cumsum.state_of_heads(8, (1, 2, 8))
    for heads, heat in zip((1, 2, 8), pictures, strict=True):
        held = state_numbers(LinearAttention(8, heads=heads)(torch.randn(1, 3, 8))[1])
        assert sum(map(sum, heat.rows)) == held
        assert f"{held} of 64" in heat.digest
    assert torch.equal(torch.tensor(pictures[2].rows), torch.eye(8, dtype=torch.int32))


def test_the_last_sum_of_the_scan_holds_all_bytes_through_a_tree():
    diagram = cumsum.scan_tree(b"abcdefgh")
    assert diagram.boxes["3 7"].text == "8"
    assert [diagram.boxes[f"3 {t}"].text for t in range(8)] == list("12345678")
    assert sum(box.colour == BLUE for box in diagram.boxes.values()) == 8 + 4 + 2 + 1
    assert len(diagram.arrows) == 2 * (4 + 2 + 1)
    for start, end in diagram.arrows:
        assert BLUE == diagram.boxes[start].colour == diagram.boxes[end].colour


def test_each_sum_of_the_tree_is_that_of_the_two_it_comes_from():
    diagram = cumsum.scan_tree()
    for name in {end for _, end in diagram.arrows}:
        parts = [int(diagram.boxes[start].text) for start, end in diagram.arrows if end == name]
        assert sum(parts) == int(diagram.boxes[name].text)
