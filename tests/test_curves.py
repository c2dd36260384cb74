"""The curves of a live run: their numbers in words, their axes, their labels."""

import itertools
import xml.etree.ElementTree as ElementTree

import pytest

from qllk.lab.live import curves
from qllk.lab.live.history import Point
from qllk.lab.pictures.svg import LETTER_WIDTH, Frame
from qllk.study.axes import Scale

BASELINES = {"uniform": 8.0, "trigram": 2.65, "bz2": 1.74, "lzma": 1.73}
CURVE = [Point(1, 8.0, 8.0, 8.0), Point(10, 4.0, 9.5, 5.0), Point(100, 2.9, 3.1, 3.0)]


def tree(text):
    return ElementTree.fromstring(text)


def texts(text):
    return [e for e in tree(text).iter() if e.tag.endswith("text")]


def test_the_loss_picture_says_its_numbers_in_words():
    picture = tree(curves.loss_curve(CURVE, [(100, 3.2)], BASELINES, [(50, "cpu bfloat16")], 1000))
    assert picture.get("role") == "img"
    assert picture.get("aria-label") == (
        "Loss after 100 steps: 3.00 bits per byte in training, 3.20 held out. Baselines: uniform "
        "8.00, trigram 2.65, bz2 1.74, lzma 1.73. cpu bfloat16 from step 50."
    )
    assert (picture.get("width"), picture.get("height")) == ("516", "300")


def test_the_step_axis_is_logarithmic():
    frame = Frame(500, 300, curves._step_scale(10_000), Scale(0, 9))
    gaps = [frame.x(10 ** (e + 1)) - frame.x(10**e) for e in range(4)]
    assert max(gaps) - min(gaps) < 1e-6
    assert frame.x(10_000) == frame.x_end


def test_a_spike_stays_inside_the_frame():
    frame = Frame(500, 300, curves._step_scale(100), Scale(0, 9))
    assert frame.y(1e9) == frame.y(float("nan")) == frame.y(float("inf")) == frame.top
    wild = curves.loss_curve([Point(1, 1, float("inf"), float("nan"))], [], {}, [], 10)
    assert all("nan" not in e.get("points", "") for e in tree(wild).iter())


def test_texts_of_marks_never_overlap():
    frame = Frame(500, 300, curves._step_scale(100), Scale(0, 9))
    for steps in ([1, 2, 3, 4], [50, 51, 90, 99, 100], [100]):
        drawn = texts(
            f"<g>{curves._draw_marks(frame, [(s, 'cuda:0 bfloat16') for s in steps])}</g>"
        )
        rows = {}
        for element in drawn:
            rows.setdefault(element.get("y"), []).append(float(element.get("x")))
            assert float(element.get("x")) + 15 * LETTER_WIDTH <= frame.x_end + 0.1
        for starts in rows.values():
            starts.sort()
            assert all(b - a >= 15 * LETTER_WIDTH for a, b in itertools.pairwise(starts))


def test_everything_from_outside_is_escaped_in_pictures():
    nasty = '<script>"&'
    loss = curves.loss_curve(CURVE, [], {nasty: 3.0}, [(5, nasty)], 100)
    states = curves.state_curves({nasty: CURVE}, 100, {nasty: 0.5})
    for picture in (loss, states):
        assert "<script" not in picture
        assert any(nasty in (element.text or "") for element in texts(picture))


def test_states_that_are_zero_or_not_finite_are_left_out():
    points = [Point(1, 0, 0, 0.0), Point(2, 1, 1, float("inf")), Point(3, 2, 2, 2.0)]
    picture = curves.state_curves({"byte 1 conv": points, "empty": points[:1]}, 100)
    assert tree(picture).get("aria-label") == "State rms per layer: byte 1 conv 2."
    assert curves.state_curves({}, 100).count("<polyline") == 0


def test_a_recall_has_bars_below_the_curves_and_says_its_numbers_in_words():
    shares = {"recall 4": 0.0172, "recall word": 0.0043, "recall 16": 0.0}
    picture = tree(curves.state_curves({"byte 1 conv": CURVE}, 100, shares))
    assert picture.get("aria-label") == (
        "State rms per layer: byte 1 conv 3. Rows in use after a window: recall 4 1.7 %, recall "
        "word 0.43 %, recall 16 0 %."
    )
    assert (picture.get("width"), picture.get("height")) == ("320", "300")
    widths = [float(e.get("width")) for e in picture.iter() if e.tag.endswith("rect")]
    assert widths[0] == pytest.approx(4 * widths[1], abs=0.3)
    assert widths[2] == 1  # so that zero is seen


@pytest.mark.parametrize("count", [1, 7, 30])
def test_bars_stay_inside_the_picture_and_below_the_curves(count):
    shares = {f"recall words-{i}": 1.0 for i in range(count)}
    picture = tree(curves.state_curves({"byte 1 conv": CURVE}, 100, shares))
    drawn = [e for e in picture.iter() if e.tag.endswith("text")]
    assert all(float(e.get("y")) <= 300 - 4 for e in drawn)
    bars = [e for e in picture.iter() if e.tag.endswith("rect")]
    assert all(float(e.get("x")) + float(e.get("width")) <= 320 - 36 for e in bars)
    (caption,) = (e for e in drawn if e.text == "rows in use after a window")
    (axis,) = (e for e in drawn if e.text == "steps")
    assert float(axis.get("y")) + LETTER_WIDTH < float(caption.get("y"))
    names = [e.text for e in drawn if e.text.startswith("recall")]
    assert names == list(shares)[:10]


def test_names_of_layers_have_room():
    drawn = texts(curves.state_curves({"byte 12 softmax of some length": CURVE}, 100))
    label = next(e for e in drawn if e.text.startswith("byte 12"))
    assert float(label.get("x")) + LETTER_WIDTH * len(label.text) < 320
