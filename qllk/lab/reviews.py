"""Questions about earlier lessons, two at the start of each lesson.

    review("05.1")           print a question and its options
    review("05.1", "b")      answer it: print whether that is right, and why

They are in `lessons/questions`. Answering is optional; the answer is kept in the learner's folder.
"""

from __future__ import annotations

from ..checks import look_up
from .folder import write_row
from .lessons.questions import QUESTIONS


def review(key: str, answer: str = ...) -> None:
    """Ask a question, or judge the letter of an answer.

    Raises   ValueError when there is no such question, or no such option
    """
    question = look_up(QUESTIONS, key, "question")
    letters = "abcdefgh"[: len(question.options)]
    if answer is ...:
        print(question.text)
        for letter, option in zip(letters, question.options, strict=True):
            print(f"    {letter}) {option}")
        return
    if answer not in tuple(letters):
        raise ValueError(f"question {key} has the answers {', '.join(letters)}; got {answer!r}")
    right = answer == question.right
    write_row(key, answer=answer, right=right)
    print(f"{key}: {'right' if right else 'not quite'}. {question.why}")
