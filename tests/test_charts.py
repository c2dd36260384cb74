"""Every figure as SVG: well-formed, escaped, and with room for its words."""

import xml.etree.ElementTree as ElementTree

import pytest
from figure_examples import FIGURES

from qllk.lab.pictures import charts
from qllk.study.axes import Scale
from qllk.study.figures import Bars, Box, Chart, Diagram, Heat


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: type(f).__name__)
def test_svg_is_well_formed_and_escaped(figure):
    svg = charts.draw_svg(figure)
    root = ElementTree.fromstring(svg)
    assert "<script>" not in svg
    assert root.get("aria-label") == figure.digest
    assert int(root.get("width")) > 0


def test_an_axis_on_which_all_is_zero_goes_to_one():
    assert charts._fit_scale([0.0, 0.0], log=False) == Scale(0.0, 1.05)


def test_words_of_any_length_have_room():
    long = Chart({"a": [(1, 1.0), (2, 2.0)]}, "x" * 60, "y")
    root = ElementTree.fromstring(charts.draw_svg(long))
    name = next(one for one in root.findall(".//{*}text") if one.text == "x" * 60)
    assert name.get("text-anchor") == "middle"
    bars = ElementTree.fromstring(charts.draw_svg(Bars("b", {"n": 7}, "kilobytes per second")))
    said = next(one for one in bars.findall(".//{*}text") if one.text.endswith("second"))
    assert float(said.get("x")) + 6 * len(said.text) < int(bars.get("width"))


def test_a_number_fits_into_its_cell():
    numbers = Heat("t", [[-0.0073, -2.9]], ["row"], ["0", "1"], numbers=True)
    root = ElementTree.fromstring(charts.draw_svg(numbers))
    cells = [float(one.get("width")) for one in root.findall(".//{*}rect")]
    assert len(cells) == 2
    assert min(cells) > 6 * len("-0.0073")


def test_a_text_fits_into_its_box():
    boxes = {"a": Box("a", 0, 0), "b": Box("twelve words", 0, 1, 0.5), "c": Box("x\ny\nz", 1, 0)}
    root = ElementTree.fromstring(charts.draw_svg(Diagram("d", boxes, [("a", "b")])))
    _, narrow, high = root.findall(".//{*}rect")
    assert float(narrow.get("width")) > 6 * len("twelve words")
    assert float(high.get("height")) > 3 * 11
    lines = [float(one.get("y")) for one in root.findall(".//{*}text") if one.text in "xyz"]
    assert lines == sorted(lines)
    assert float(high.get("y")) < lines[0] - 8
    assert lines[-1] < float(high.get("y")) + float(high.get("height"))


def test_a_long_curve_has_a_dot_at_its_end_only():
    for n, dots in ((40, 40), (41, 1)):
        svg = charts.draw_svg(Chart({"a": [(i, 1.0 + i) for i in range(n)]}, "x", "y", ""))
        assert svg.count("<circle") == dots
