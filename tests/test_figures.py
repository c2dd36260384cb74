"""Figures are data; both painters draw all of them, escaped, and say their numbers in words."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from qllk.lab.pictures import charts
from qllk.study import plots
from qllk.study.axes import Scale, ticks
from qllk.study.figures import Bars, Chart, Heat, Note, digest, rows_of

NASTY = "<script>&\"'"
CHART = Chart(
    {"loop": [(1, 2.0), (10, 20.0)], NASTY: [(1, 1.0), (10, 3.0)]}, "N", "s", levels={"f": 5}
)
HEAT = Heat(NASTY, [[1.0, -2.0], [0.0, math.inf]], ["a", NASTY], ["x", "y"], numbers=True)
BARS = Bars("size", {"kernel": 3, NASTY: 9000}, "KB")
NOTE = Note("said", ["a  b", NASTY])
FIGURES = [CHART, HEAT, BARS, NOTE]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: type(f).__name__)
def test_svg_is_well_formed_and_escaped(figure):
    svg = charts.drawn(figure)
    root = ElementTree.fromstring(svg)
    assert "<script>" not in svg
    assert root.get("aria-label") == figure.digest
    assert int(root.get("width")) > 0


@pytest.mark.parametrize("page", [*FIGURES, FIGURES, [(HEAT, CHART), NOTE]])
def test_a_picture_is_a_png_whose_text_is_the_digest(page):
    shown = plots.picture(page)
    assert shown._repr_png_().startswith(b"\x89PNG")
    assert repr(shown) == digest(page)


def test_a_dollar_in_a_text_is_no_formula():
    for figure in (Note("$\\foo$", ["$\\foo$"]), Heat("$\\foo$", [[1.0]], ["$\\foo$"], ["a"])):
        assert plots.picture(figure)._repr_png_().startswith(b"\x89PNG")


def test_the_same_figure_gives_the_same_png():
    assert plots.picture(CHART)._repr_png_() == plots.picture(CHART)._repr_png_()


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
    charts.drawn(Chart({}, "x", "y"))


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(1, 1e6, True), (0.8, 1.3, True), (3, 40, True), (0, 7.3, False), (-2, 1e5, False)],
)
def test_ticks_are_round_few_and_inside(low, high, log):
    found = ticks(Scale(low, high, log))
    assert 2 <= len(found) <= 12
    assert all(low <= value <= high for value, _ in found)
    assert len({words for _, words in found}) == len(found)


def test_an_axis_on_which_all_is_zero_goes_to_one():
    assert charts.scale([0.0, 0.0], log=False) == Scale(0.0, 1.05)


def test_a_full_cell_is_the_largest_unless_given():
    assert HEAT.full == 2.0
    assert HEAT._replace(most=5.0).full == 5.0
    assert Heat("zero", [[0.0]], ["a"], ["b"]).full == 1.0


def test_a_stranger_is_refused():
    with pytest.raises(TypeError, match="a figure is a Chart, Heat, Bars or Note, got 3"):
        charts.drawn(3)
    with pytest.raises(TypeError, match="a figure is a Chart"):
        plots.plot(3, None)


def test_words_of_any_length_have_room():
    long = Chart({"a": [(1, 1.0), (2, 2.0)]}, "x" * 60, "y")
    root = ElementTree.fromstring(charts.drawn(long))
    name = next(one for one in root.findall(".//{*}text") if one.text == "x" * 60)
    assert name.get("text-anchor") == "middle"
    bars = ElementTree.fromstring(charts.drawn(Bars("b", {"n": 7}, "kilobytes per second")))
    said = next(one for one in bars.findall(".//{*}text") if one.text.endswith("second"))
    assert float(said.get("x")) + 6 * len(said.text) < int(bars.get("width"))


def test_a_number_fits_into_its_cell():
    numbers = Heat("t", [[-0.0073, -2.9]], ["row"], ["0", "1"], numbers=True)
    root = ElementTree.fromstring(charts.drawn(numbers))
    cells = [float(one.get("width")) for one in root.findall(".//{*}rect")]
    assert len(cells) == 2
    assert min(cells) > 6 * len("-0.0073")
