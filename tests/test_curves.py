"""The curves of a live run: their numbers in words, their axes, their labels."""

import itertools
import xml.etree.ElementTree as ElementTree

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
    states = curves.state_curves({nasty: CURVE}, 100)
    for picture in (loss, states):
        assert "<script" not in picture
        assert any(nasty in (element.text or "") for element in texts(picture))


def test_states_that_are_zero_or_not_finite_are_left_out():
    points = [Point(1, 0, 0, 0.0), Point(2, 1, 1, float("inf")), Point(3, 2, 2, 2.0)]
    picture = curves.state_curves({"byte 1 conv": points, "empty": points[:1]}, 100)
    assert tree(picture).get("aria-label") == "State rms per layer: byte 1 conv 2."
    assert curves.state_curves({}, 100).count("<polyline") == 0


def test_names_of_layers_have_room():
    drawn = texts(curves.state_curves({"byte 12 softmax of some length": CURVE}, 100))
    label = next(e for e in drawn if e.text.startswith("byte 12"))
    assert float(label.get("x")) + LETTER_WIDTH * len(label.text) < 320
