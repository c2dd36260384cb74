"""One figure of each kind, with words that need escaping."""

import math

from qllk.study.axes import BLUE
from qllk.study.figures import Bars, Box, Chart, Diagram, Heat, Note

NASTY = "<script>&\"'"
CHART = Chart(
    {"loop": [(1, 2.0), (10, 20.0)], NASTY: [(1, 1.0), (10, 3.0)]}, "N", "s", levels={"f": 5}
)
HEAT = Heat(NASTY, [[1.0, -2.0], [0.0, math.inf]], ["a", NASTY], ["x", "y"], numbers=True)
BARS = Bars("size", {"kernel": 3, NASTY: 9000}, "KB")
NOTE = Note("said", ["a  b", NASTY])
DIAGRAM = Diagram(
    NASTY,
    {
        "a": Box("a", 0, 0),
        "b": Box("two\nlines", 2, 0, colour=BLUE),
        "c": Box(NASTY, 1, 1, 2, framed=False),
    },
    [("a", "b"), ("a", "c")],
)
FIGURES = [CHART, HEAT, BARS, DIAGRAM, NOTE]
