"""Labels next to each other never overlap."""

import itertools
import random

from qllk.lab.pictures import svg


def test_labels_never_overlap_and_stay_in_the_frame():
    chance = random.Random(0)
    for _ in range(200):
        wanted = sorted(chance.uniform(0, 200) for _ in range(chance.randint(1, 12)))
        places = svg._spread(wanted, 13, 200)
        assert all(b - a >= 13 - 1e-9 for a, b in itertools.pairwise(places))
        assert places[-1] <= 200


def test_labels_that_have_room_stay_where_they_are():
    assert svg._spread([10, 40, 90], 13, 200) == [10, 40, 90]
