"""Every figure as a PNG, the same each time, whose text is the digest."""

import itertools

import pytest
from figure_examples import CHART, FIGURES, HEAT, NOTE
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from qllk.lab.lessons import addresses, assembly, cumsum, linear, patches
from qllk.study import plots
from qllk.study.axes import series_colours
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


def drawn_axes(page):
    whole = plots.picture(page)._draw()
    FigureCanvasAgg(whole).draw()
    return whole.axes, whole.canvas.get_renderer()


def test_each_line_is_named_at_its_end_in_its_colour():
    names = ["attention", "kernel", "kept", "read"]
    lines = {name: [(1, 1.0), (100, 2.0 + 0.01 * i)] for i, name in enumerate(names)}
    (axes,), renderer = drawn_axes(Chart(lines, "x", "y", levels={"level": 2.02}))
    labels = {text.get_text(): text for text in axes.texts}
    for name, colour in zip(names, series_colours(names), strict=True):
        assert to_rgb(labels[name].get_color()) == pytest.approx([0.75 * c for c in to_rgb(colour)])
    boxes = sorted((label.get_window_extent(renderer) for label in axes.texts), key=lambda b: b.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))
    assert all(box.x0 >= axes.get_window_extent(renderer).x1 for box in boxes)


DIAGRAMS = {
    "scan": cumsum.scan_tree(),
    "chunks": linear.triangle(4)[0][1],
    "patches": patches.timeline(8),
    "rows": addresses.paths_to_rows(2, 64),
    "model": assembly.whole_model(),
    "stream": assembly.residual_stream(),
}


@pytest.mark.parametrize("diagram", DIAGRAMS.values(), ids=DIAGRAMS)
def test_each_text_of_a_diagram_fits_into_its_box(diagram):
    (axes,), renderer = drawn_axes(diagram)
    shapes = iter(axes.patches)
    for box, text in zip(diagram.boxes.values(), axes.texts, strict=False):
        if box.framed:
            frame, words = (
                next(shapes).get_window_extent(renderer),
                text.get_window_extent(renderer),
            )
            assert frame.x0 <= words.x0
            assert words.x1 <= frame.x1
            assert frame.y0 - 1 <= words.y0
            assert words.y1 <= frame.y1 + 1
