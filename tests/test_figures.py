"""Figures are data, and say their numbers in words."""

import math

import pytest
from figure_examples import CHART, HEAT, NOTE

from qllk.lab.pictures import charts
from qllk.study import plots
from qllk.study.figures import Chart, Heat, digest, rows_of


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
