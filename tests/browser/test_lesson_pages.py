"""Each lesson in a real browser: its stored pictures, and its widget with every control used."""

from itertools import cycle
from pathlib import Path

import nbformat
import pytest
from helpers import DRAWN
from open_notebook import THREADS, OpenNotebook
from readable import THEMES, axe_faults, set_theme

from qllk.lab.lessons.exercises import EXERCISES

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
NUMBERS = range(1, len(EXERCISES) + 1)
SAME_PICTURE = 5  # seconds after which a control is taken to have changed nothing


class Widget(OpenNotebook):
    """A lesson's widget as a person sees it: its controls are found on the page."""

    def __init__(self, page, server, name):
        source = f"from qllk.lab.lessons import {name}\n\n{name}.{DRAWN[name]}.widget()"
        cells = [nbformat.v4.new_code_cell(source) for source in (source, THREADS)]
        super().__init__(page, server, f"{name}.ipynb", cells)
        self.run_cell(0)
        self.row = page.locator(".q-explore .q-row")
        self.wait_for(lambda: self.row.count() and self.picture)
        self.runs = self.row.locator("button.q-run").count() > 0

    @property
    def controls(self):
        return [one for one in self.row.locator(":scope > *").all() if one.locator("*").count()]

    @property
    def picture(self):
        return self.page.locator(".q-picture").inner_html()

    def press(self, name):
        self.row.locator(f"button.q-{name}").click()

    def moves(self, control):
        """Actions that take a control through all its values."""
        if (menu := control.locator("select")).count():
            values = range(menu.locator("option").count())
            return [lambda i=i: menu.select_option(index=i) for i in reversed(values)]
        if radios := control.locator("input[type=radio]").all():
            return [one.check for one in (radios[-1], *radios)]
        if (box := control.locator("input[type=checkbox]")).count():
            return [box.click, box.click]
        field = control.locator("input[type=text]")
        return [lambda text=text: type_in(field, text) for text in ("a", "\u00e9 <b>")]

    def changed(self, before):
        """Whether the picture changes, after pressing Run where there is such a button."""
        if self.runs:
            self.press("reset")
            self.wait_for(lambda: "Press Run." in self.picture)
            self.press("run")
            self.wait_for(lambda: "Press Run." not in self.picture)
            self.press("stop")
            return True
        for _ in range(SAME_PICTURE * 10):
            if self.picture != before:
                return True
            self.page.wait_for_timeout(100)
        return False


def type_in(field, text):
    field.fill(text)
    field.press("Enter")


@pytest.mark.parametrize("name", DRAWN)
def test_every_control_of_a_lesson_moves_its_picture(page, server, pictures, name):
    widget = Widget(page, server, name)
    whole = widget.page.locator(".q-explore")
    widget.inspect(".q-explore", pictures / f"lesson-{name}.png")
    size, themes = whole.bounding_box()["height"], cycle(THEMES)
    for control in widget.controls:
        changes = []
        for move in widget.moves(control):
            before = widget.picture
            move()
            changes.append(widget.changed(before))
            assert not widget.page.locator(".q-bad").count(), widget.text
            widget.assert_readable(".q-explore", next(themes))
        assert any(changes), f"{control.inner_text()} changes nothing"
    widget.inspect(".q-explore", pictures / f"lesson-{name}-moved.png")
    widget.press("reset")
    widget.press("reset")
    widget.wait_until_no_thread(1)
    assert abs(whole.bounding_box()["height"] - size) < 40, "the page jumps"


@pytest.mark.parametrize("number", NUMBERS)
def test_a_stored_lesson_shows_its_pictures(page, server, pictures, number):
    path = next(NOTEBOOKS.glob(f"{number:02}_*.ipynb"))
    cells = nbformat.read(path, as_version=4).cells
    stored = sum("image/png" in o.get("data", {}) for c in cells for o in c.get("outputs", []))
    page.set_viewport_size({"width": 1280, "height": 24_000})  # else only a part is rendered
    opened = OpenNotebook(page, server, path.name, cells)
    drawn = page.locator(".jp-RenderedImage img")
    opened.wait_for(lambda: drawn.count() == stored)
    assert stored
    assert all(one.evaluate("image => image.naturalWidth > 100") for one in drawn.all())
    for theme in THEMES:
        set_theme(page, theme)
        page.screenshot(path=pictures / f"page-{number:02}-{theme.split()[-1].lower()}.png")
        assert not axe_faults(page, ".jp-RenderedMarkdown")
        found = {fault.partition(":")[0] for fault in axe_faults(page, ".jp-OutputArea-output")}
        assert found <= {"image-alt"}  # JupyterLab has no way to give a stored PNG its words
