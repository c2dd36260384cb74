"""The shape of a lesson: header, sections, budgets. What is in it is tested by running it."""

import json
import re
import statistics
from pathlib import Path

import pytest

from qllk.lab.lessons.exercises import EXERCISES

ROOT = Path(__file__).resolve().parents[1]
LESSONS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))[1:]  # 00 is the lab
HEADER = ("You build", "You can say", "Minutes", "Needs", "Stored outputs")
SECTIONS = [
    "The pain",
    "Predict",
    "Build",
    "Measure",
    "Compare",
    "Break it",
    "Exercises",
    "Play",
    "Recap",
]
WORDS = (900, 1800)
SENTENCE_MEDIAN, CELL_LINES, CODE_LINES = 14, 15, 150


class Notebook:
    def __init__(self, path):
        cells = json.loads(path.read_text())["cells"]
        self.number = path.stem[:2]
        self.name = list(EXERCISES)[int(self.number) - 1]
        self.texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        self.code = [source for source in sources if "review(" not in source]
        self.questions = [source for source in sources if "review(" in source]
        self.starts = [c["cell_type"] for c in cells[:4]]
        self.prose = "\n\n".join(self.texts)
        self.program = "\n".join(self.code)


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem[:2])
def lesson(request):
    return Notebook(request.param)


def plain(markdown):
    """Prose alone: no code, no formulas, no headings, no list marks."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$", "", markdown, flags=re.S)
    text = re.sub(r"^#+ .*$", "", text, flags=re.M)
    text = re.sub(r"`[^`]*`|\$[^$]*\$", "it", text)
    return re.sub(r"[*_|]", "", text)


def sentences(markdown):
    found = re.split(r"(?<=[.!?:])\s+|\n\n", plain(markdown))
    return [one.split() for one in found if len(one.split()) > 2]


def test_the_header_has_six_lines(lesson):
    lines = [line for line in lesson.texts[0].splitlines() if line.strip()]
    assert re.fullmatch(r"# [A-Z][a-z]+ .+[^.!]", lines[0]), "a title with a verb, no full stop"
    assert [re.match(r"\* \*\*(.+?)\*\*", line).group(1) for line in lines[1:]] == list(HEADER)
    minutes = next(line for line in lines if "**Minutes**" in line)
    assert re.search(r"\d+ to read, \d+ to do, (under )?\d+ to compute", minutes)


def test_the_sections_stand_in_order(lesson):
    assert re.findall(r"^## (.+)$", lesson.prose, re.M) == SECTIONS


def test_it_opens_with_two_questions_about_earlier_lessons(lesson):
    asked = [
        f'from qllk.lab import review\n\nreview("{lesson.number}.1")\nreview("{lesson.number}.2")'
    ]
    assert lesson.questions == (asked if lesson.number != "01" else [])
    assert lesson.number == "01" or lesson.starts == ["markdown", "markdown", "code", "markdown"]


def test_the_prose_is_neither_thin_nor_a_wall(lesson):
    assert WORDS[0] <= len(plain(lesson.prose).split()) <= WORDS[1]


def test_the_sentences_are_short(lesson):
    lengths = [len(words) for words in sentences(lesson.prose)]
    assert statistics.median(lengths) <= SENTENCE_MEDIAN
    assert sum(n > 30 for n in lengths) <= 0.05 * len(lengths)


def test_the_code_is_short(lesson):
    for source in lesson.code:
        assert len(source.splitlines()) <= CELL_LINES, source
    assert sum(len([x for x in s.splitlines() if x.strip()]) for s in lesson.code) <= CODE_LINES


def test_the_reader_is_asked(lesson):
    words = len(plain(lesson.prose).split())
    assert lesson.prose.count("?") >= words / 200


def test_no_hype_and_no_emoji(lesson):
    assert not re.search(
        r"blazing|amazing|awesome|revolution|magic|simply|obviously|!\s", lesson.prose
    )
    assert not re.search("[\U0001f300-\U0001faff]", lesson.prose)


def test_it_predicts_once_and_compares_under_the_same_key(lesson):
    guessed = re.findall(r'^predict\("(\d\d)\.(\w+)", \.\.\.\)$', lesson.program, re.M)
    assert len(guessed) == 1
    assert guessed[0][0] == lesson.number
    assert f'outcome("{lesson.number}.{guessed[0][1]}", ' in lesson.program


def test_it_carries_the_one_string(lesson):
    assert re.search(r"\b(TEXT|tiny)\b", lesson.program)


def test_each_exercise_has_its_heading_stub_and_check(lesson):
    exercises = EXERCISES[lesson.name]
    assert 3 <= len(exercises) <= 4
    headings = re.findall(rf"^### {lesson.number}\.\d ", lesson.prose, re.M)
    asked = re.findall(r"\*\*(●○○|●●○|●●●) · (\d+) minutes\.\*\*", lesson.prose)
    assert len(headings) == len(asked) == len(exercises)
    assert all(1 <= int(minutes) <= 30 for _, minutes in asked)
    for exercise in exercises:
        call = rf"^check\.{re.escape(exercise.name)}\(((?:my_|My)\w+)\)$"
        mine = re.search(call, lesson.program, re.M)
        assert mine, f"no line  check.{exercise.name}(my_…)"
        assert re.search(rf"^(def|class) {mine.group(1)}\(", lesson.program, re.M)


def test_its_widget_has_a_picture_beside_it(lesson):
    call = re.compile(rf"^{lesson.name}\.(\w+\.)?widget\(", re.M)
    shown = next(i for i, s in enumerate(lesson.code) if call.search(s))
    assert "picture(" in lesson.code[shown + 1]


def test_it_ends_with_three_sentences_its_limits_and_what_comes_next(lesson):
    recap = lesson.prose.partition("## Recap")[2].strip().split("\n\n")
    assert 3 <= len(sentences(recap[0])) <= 4
    assert "**What this did not show" in recap[1]
    assert "**Next:**" in recap[1]


def test_there_is_one_file_for_each_lesson():
    folder = ROOT / "qllk" / "lab" / "lessons"
    there = {path.stem for path in folder.glob("*.py")} - {"__init__", "claims", "questions"}
    assert there == {list(EXERCISES)[int(path.stem[:2]) - 1] for path in LESSONS}
