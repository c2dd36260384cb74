"""The notebooks' side: runs in threads, pictures as text, panels, checks, predictions. Nothing
else in the library imports it."""

from ..study.figures import Bars, Chart, Heat, Note
from ..study.plots import picture
from . import check
from .minimize import minimize
from .predictions import expected_and_happened, outcome, predict
from .progress import show_progress
from .reviews import review
from .show import TEXT, digits, same, show, sized, tiny

__all__ = [
    "TEXT",
    "Bars",
    "Chart",
    "Heat",
    "Note",
    "check",
    "digits",
    "expected_and_happened",
    "minimize",
    "outcome",
    "picture",
    "predict",
    "review",
    "same",
    "show",
    "show_progress",
    "sized",
    "tiny",
]
