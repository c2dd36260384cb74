"""What a learner has done so far, by lesson: predictions, questions and exercises."""

from __future__ import annotations

from .exercise import CORRECT
from .folder import read_table
from .lessons.exercises import EXERCISES
from .lessons.questions import QUESTIONS
from .predictions import compare


def show_progress() -> None:
    """Print the table, written by the lessons' own calls."""
    print(format_progress(read_table()))


def format_progress(table: dict[str, dict]) -> str:
    """The rows of the learner's table by lesson, and what they add up to."""
    lines = []
    for number, lesson in enumerate(EXERCISES, 1):
        rows = [*_told_rows(f"{number:02}.", table), *_exercise_rows(lesson, table)]
        if rows:
            lines += [f"lesson {number:02}, {lesson}", *(f"    {row}" for row in rows)]
    exercises = [one.name for several in EXERCISES.values() for one in several]
    correct = sum(table.get(name, {}).get("verdict") == CORRECT for name in exercises)
    right = sum(bool(table.get(key, {}).get("right")) for key in QUESTIONS)
    lines.append(
        f"{correct} of {len(exercises)} exercises correct, {right} of {len(QUESTIONS)} questions "
        "answered right"
    )
    return "\n".join(lines)


def _told_rows(prefix, table):
    """The predictions and the answers of a lesson."""
    for key in sorted(key for key in table if key.startswith(prefix)):
        if "answer" in table[key]:
            yield f"{key:20} answered {'right' if table[key].get('right') else 'wrong'}"
        else:
            yield f"{key:20} {compare(table[key])}"


def _exercise_rows(lesson, table):
    """The exercises of a lesson that were tried."""
    for exercise in EXERCISES[lesson]:
        row = table.get(exercise.name)
        if not row:
            continue
        facts = [row.get("verdict", "not tried yet")]
        facts += [_count(row[what], name) for what, name in _COUNTED.items() if row.get(what)]
        facts += ["solution seen"] if row.get("solution") else []
        yield f"{exercise.name:20} {', '.join(facts)}"


_COUNTED = {"tries": ("try", "tries"), "hints": ("hint", "hints")}


def _count(number, names) -> str:
    return f"{number} {names[number != 1]}"
