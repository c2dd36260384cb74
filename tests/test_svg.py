"""Labels next to each other never overlap, and an arrow ends where it points."""

import itertools
import random
import re

from qllk.lab.pictures import svg
from qllk.study.axes import Scale


def test_labels_never_overlap_and_stay_in_the_frame():
    chance = random.Random(0)
    frame = svg.Frame(300, 250, Scale(0, 1), Scale(0, 1))
    for _ in range(50):
        items = [(chance.random(), "x", None) for _ in range(chance.randint(1, 12))]
        places = [float(y) for y in re.findall(r' y="([0-9.]+)"', frame.labels(items))]
        assert all(b - a >= svg.LINE_HEIGHT - 0.11 for a, b in itertools.pairwise(places))
        assert places[-1] <= frame.y_end + 4.05


def test_the_head_of_an_arrow_is_where_it_points():
    for end in ((40, 10), (10, 40), (10, 10)):
        drawn = svg.arrow(10, 10, *end)
        assert f'points="{end[0]:.1f},{end[1]:.1f} ' in drawn
        assert "nan" not in drawn
