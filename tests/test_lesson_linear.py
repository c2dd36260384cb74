"""Lesson 02: the two orders that it compares, and its widget."""

import pytest
import torch
from helpers import same

from qllk.lab.lessons import linear
from qllk.model import kernels
from qllk.probes import measure


def test_both_orders_give_what_the_definition_gives():
    q, k, v = torch.randn(3, 2, 3, 70, 5, dtype=torch.float64)
    wanted = kernels.linear_attention_loop(q, k, v)[0]
    same(linear.masked_table(q, k, v), wanted)
    for chunk in (1, 7, 128):
        same(linear.in_chunks(chunk)(q, k, v), wanted)


@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("chunk", [8, 32])
def test_the_counted_orders_cross_at_head_width_plus_chunk(width, chunk):
    lengths = [16, 32, 64, 128, 256]
    table, chunks = (
        [linear.operations_of(order, length, width) for length in lengths]
        for order in (linear.masked_table, linear.in_chunks(chunk))
    )
    assert measure.crossover(lengths, table, chunks) == pytest.approx(width + chunk)


def test_of_noisy_curves_the_last_crossing_counts():
    table, chunks = [2.0, 1.0, 1.0, 4.0], [1.0, 2.0, 2.0, 2.0]
    assert linear.cheaper_from([1, 2, 4, 8], table, chunks) == pytest.approx(32**0.5)
    assert linear.cheaper_from([1, 2, 4, 8], [2.0] * 4, [1.0] * 4) == 1
    assert linear.cheaper_from([1, 2], [2.0, 1.0], [1.0, 2.0]) is None


def test_a_race_grows_by_one_length_a_page():
    pages = list(linear.race_orders(width=8, length=128, chunk=8))
    reached = [[x for x, _ in page[0].lines["table"]] for page in pages]
    assert reached == [[16], [16, 32], [16, 32, 64], [16, 32, 64, 128]]
    assert "counted: from 16 bytes" in pages[-1][2].lines


def test_chunks_as_long_as_the_text_never_pay():
    assert "counted: not up to 128 bytes" in list(linear.race_orders(8, 128, 128))[-1][2].lines


@pytest.mark.parametrize(("control", "value"), [("width", 8), ("length", 128), ("chunk", 128)])
def test_every_control_changes_what_is_counted(control, value):
    base = {"width": 16, "length": 256, "chunk": 8}
    before, after = (
        list(linear.race_orders(**sizes))[-1] for sizes in (base, base | {control: value})
    )
    assert before[0] != after[0]


def test_the_widget_draws_and_returns_to_its_first_settings():
    shown = linear.race_orders.widget()
    shown.controls["length"].value = 128
    shown.wait()
    shown.reset()
    shown.wait()
    assert shown.controls["length"].value == 1024
    assert "operations, counted" in shown.picture.value


@pytest.mark.parametrize("chunk", [1, 4, 5, 16])
def test_the_triangle_is_cut_into_tables_and_what_the_state_gives(chunk):
    ((heat, diagram),) = linear.triangle(chunk)
    cells = torch.tensor(heat.rows)
    assert torch.equal(cells != 0, torch.ones(16, 16).tril().bool())
    i, j = (cells > 0).nonzero().T
    assert torch.equal(i // chunk, j // chunk)
    words = [b.text for name, b in diagram.boxes.items() if name.startswith("chunk")]
    assert "".join(words) == "abracadabra_abra"
    assert max(map(len, words)) == chunk


def test_each_chunk_reads_the_state_of_the_one_before_it():
    ((_, diagram),) = linear.triangle(4)
    assert ("S 0", "chunk 1") in diagram.arrows
    assert ("chunk 1", "S 1") in diagram.arrows
    assert not any(end == "chunk 0" for _, end in diagram.arrows)
    assert [diagram.boxes[f"S {i}"].text for i in (0, 3)] == ["S of 4 bytes", "S of 16 bytes"]
