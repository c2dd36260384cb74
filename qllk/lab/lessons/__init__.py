"""What each lesson needs for itself: its exercises and its widget, one file a lesson."""

from pathlib import Path

# By number: NAMES[0] belongs to notebook 01.
NAMES = (
    "attention",
    "linear",
    "cumsum",
    "growth",
    "patches",
    "fusing",
    "assembly",
    "training",
    "writing",
    "race",
)


def written() -> list[str]:
    """The names of the lessons that are there."""
    return [name for name in NAMES if (Path(__file__).parent / f"{name}.py").exists()]
