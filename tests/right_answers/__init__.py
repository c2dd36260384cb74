"""Right answers other than the solution, two for each exercise: RIGHT[name] lists them."""

from importlib import import_module

from qllk.lab import lessons

RIGHT = {
    f"{lesson}.{name}": answers
    for lesson in lessons.written()
    for name, answers in import_module(f"right_answers.{lesson}").ANSWERS.items()
}
