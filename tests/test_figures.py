"""Figures are data, and say their numbers in words."""

import math

import pytest
from figure_examples import CHART, DIAGRAM, HEAT, NOTE

from qllk.lab.pictures import charts
from qllk.study import plots
from qllk.study.figures import Box, Chart, Diagram, Heat, digest, rows_of


def test_a_page_is_rows_of_figures():
    assert rows_of(NOTE) == [(NOTE,)]
    assert rows_of([(HEAT, CHART), NOTE]) == [(HEAT, CHART), (NOTE,)]
    html = charts.page_html([(HEAT, CHART), NOTE])
    assert html.count('<div class="q-figures">') == 2
    assert html.count("<svg ") == 3


def test_points_that_cannot_be_drawn_are_left_out():
    chart = Chart({"a": [(0, 1), (1, 0), (1, math.nan), (2, 4)], "b": [(1, -1)]}, "x", "y")
    assert chart.drawable == {"a": [(2, 4)]}
    straight = chart._replace(log="")
    assert straight.drawable == {"a": [(0, 1), (1, 0), (2, 4)], "b": [(1, -1)]}
    assert "at the right end: nothing." in Chart({}, "x", "y").digest
    charts.draw_svg(Chart({}, "x", "y"))


def test_a_full_cell_is_the_largest_unless_given():
    assert HEAT.full == 2.0
    assert HEAT._replace(most=5.0).full == 5.0
    assert Heat("zero", [[0.0]], ["a"], ["b"]).full == 1.0


@pytest.mark.parametrize("show", [charts.page_html, plots.picture, digest])
def test_a_stranger_is_refused(show):
    for page in (3, [3], [(HEAT, 3)]):
        with pytest.raises(
            TypeError, match="a figure is a Chart, Heat, Bars, Diagram or Note, got 3"
        ):
            show(page)


def test_a_table_says_its_size_and_its_range():
    assert HEAT._replace(title="t").digest == "t: 2 rows of 2, from -2 to 1."
    assert Heat("t", [[math.nan]], ["a"], ["b"]).digest == "t: 1 rows of 1, from 0 to 0."
    assert HEAT._replace(said="so").digest == "so"


def test_a_diagram_says_where_its_arrows_lead():
    diagram = DIAGRAM._replace(title="d")
    assert diagram.digest == "d: a → two lines, <script>&\"'."
    assert diagram._replace(said="so").digest == "so"


def test_arrows_run_from_edge_to_edge():
    boxes = {"a": Box("a", 0, 0), "right": Box("b", 3, 0, 2), "below": Box("c", 0, 4)}
    a, right, below = (box.edges for box in boxes.values())
    diagram = Diagram("d", boxes, [("a", "right"), ("below", "a")])
    (start, end), (up, top) = diagram.paths
    assert start == pytest.approx((a.right, 0.5))
    assert end == pytest.approx((right.left, 0.5))
    assert up == pytest.approx((0.5, below.top))
    assert top == pytest.approx((0.5, a.bottom))
    ((start, end),) = Diagram("d", boxes, [("a", "below")], down=True).paths
    assert start == pytest.approx((0.5, a.bottom))
    assert end == pytest.approx((0.5, below.top))


def test_whole_numbers_along_x_are_noticed():
    assert Chart({"a": [(0, 0.5), (3.0, 1.5)]}, "x", "y", "").counts_in_x
    assert not CHART._replace(lines={"a": [(1, 1.0), (1.5, 1.0)]}).counts_in_x
