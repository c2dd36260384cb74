"""Right answers other than the solution, two for each exercise: RIGHT[name] lists them."""

from importlib import import_module

from qllk.lab.lessons.exercises import EXERCISES

RIGHT = {
    f"{lesson}.{name}": answers
    for lesson in EXERCISES
    for name, answers in import_module(f"right_answers.{lesson}").ANSWERS.items()
}
