"""Every figure as a PNG, the same each time, whose text is the digest."""

import pytest
from figure_examples import CHART, FIGURES, HEAT, NOTE

from qllk.study import plots
from qllk.study.figures import Heat, Note, digest


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
