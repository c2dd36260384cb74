"""Every figure as a PNG, the same each time, whose text is the digest."""

import pytest
from figure_examples import CHART, FIGURES, HEAT, NOTE

from qllk.study import plots
from qllk.study.figures import Chart, Heat, Note, digest


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


@pytest.mark.parametrize("log", ["", "xy"])
def test_levels_that_lie_close_together_share_a_label(log):
    levels = {"bz2": 1.74, "uniform": 8.0, "lzma": 1.73}
    chart = Chart({"loss": [(1, 8.0), (20, 1.5)]}, "step", "bits", log=log, levels=levels)
    (axes,) = plots.picture(chart)._draw().axes
    assert [label.get_text() for label in axes.texts] == ["lzma, bz2", "uniform"]
