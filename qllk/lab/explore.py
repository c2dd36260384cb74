"""Small widgets: a question, some controls, one page of figures below.

The page is a pure function of the controls, or a generator of pages for what takes a while.
A callback only leaves the newest wish; a worker thread, alive only while there are wishes, draws
it. An error is shown in the widget and kept in `error`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from html import escape

import ipywidgets as widgets

from ..study.figures import Note, Page
from .pictures.charts import page_html

Wish = Callable[[], Page | Iterator[Page]]  # what to show: one page, or pages one after the other
STYLE = """<style>
.q-explore { max-width: 100%; padding: 4px 2px; overflow: visible; font-size: 13px;
  color: var(--jp-ui-font-color1, #222); font-family: var(--jp-ui-font-family, sans-serif); }
.q-explore .q-question { font-weight: 600; line-height: 1.4; }
.q-explore .q-row { flex-flow: row wrap; gap: 4px 18px; overflow: visible; align-items: center; }
.q-explore .q-row .widget-label { width: auto; min-width: 40px; font-size: 12px; }
.q-explore .q-row > * { margin: 2px 0; }
.q-explore .q-row > .widget-hslider { width: auto; min-width: 280px; }
.q-explore .q-row .widget-readout { flex: 0 0 auto; min-width: 40px; max-width: none;
  overflow: visible; }
.q-explore .q-row button { width: 84px; border-radius: 4px; }
.q-explore .q-picture .widget-html-content { line-height: 1.3; }
.q-explore .q-figures { display: flex; flex-flow: row wrap; gap: 8px 24px; margin: 4px 0; }
.q-explore .q-bad { color: #d2544d; font-weight: 600; }
</style>"""


def choice(name: str, options, value=None) -> widgets.Dropdown:
    """One of several."""
    return widgets.Dropdown(
        options=options, value=options[0] if value is None else value, description=name
    )


def slider(name: str, options, value=None) -> widgets.SelectionSlider:
    """One of several in order: lengths, widths, rates."""
    return widgets.SelectionSlider(
        options=options,
        value=options[0] if value is None else value,
        description=name,
        continuous_update=False,
    )


def switch(name: str, value=False) -> widgets.Checkbox:
    """Yes or no."""
    return widgets.Checkbox(value=value, description=name, indent=False)


def line(name: str, value: str) -> widgets.Text:
    """A short text."""
    return widgets.Text(value=value, description=name, continuous_update=False)


class Explorer:
    """A widget that draws anew whenever a control moves.

        Explorer("Who sees whom?", {"length": slider("length", [4, 8])}, draw)

    draw   from the controls' values, by name, to a page of figures; a generator gives pages that
           replace each other
    """

    def __init__(
        self,
        question: str,
        controls: dict[str, widgets.Widget],
        draw: Callable[..., Page | Iterator[Page]],
    ):
        self.controls, self._draw = controls, draw
        self.error: Exception | None = None
        self._first = {name: control.value for name, control in controls.items()}
        self._changed = threading.Condition()
        self._wish: Wish | None = None
        self._worker: threading.Thread | None = None
        self.picture = widgets.HTML()
        self.picture.add_class("q-picture")
        self.buttons = {name: widgets.Button(description=name.capitalize()) for name in self.orders}
        for name, button in self.buttons.items():
            button.add_class(f"q-{name}")
            button.on_click(lambda _, name=name: self.orders[name]())
        for name, control in controls.items():
            control.add_class(f"q-{name}")
            control.observe(lambda _: self._moved(), "value")
        head = widgets.HTML(f'{STYLE}<div class="q-question">{escape(question)}</div>')
        row = widgets.HBox([*controls.values(), *self.buttons.values()])
        row.add_class("q-row")
        self.widget = widgets.VBox([head, row, self.picture])
        self.widget.add_class("q-explore")
        self._grant(self.opening())

    def _repr_mimebundle_(self, **options):
        return self.widget._repr_mimebundle_(**options)

    # ------------------------------------------------------------ orders

    @property
    def orders(self) -> dict[str, Callable[[], None]]:
        """What each button does."""
        return {"reset": self.reset}

    def reset(self) -> None:
        """All controls as they were at first, and the first picture."""
        for name, value in self._first.items():
            self.controls[name].value = value
        self._want(self.opening())

    def wait(self, seconds: float = 60.0) -> None:
        """Until everything wished for is drawn.

        Raises   what went wrong in drawing
        """
        if worker := self._worker:
            worker.join(seconds)
        if self.error:
            raise self.error

    def opening(self) -> Wish:
        """What is shown before anybody has touched anything."""
        return self.drawing()

    def drawing(self) -> Wish:
        """What the controls ask for now."""
        values = {name: control.value for name, control in self.controls.items()}
        return lambda: self._draw(**values)

    def _moved(self):
        self._want(self.drawing())

    # ------------------------------------------------------------ drawing

    def _want(self, wish: Wish):
        with self._changed:
            self._wish = wish
            if self._worker is None:
                self._worker = threading.Thread(
                    target=self._work, name="qllk-explorer", daemon=True
                )
                self._worker.start()

    def _work(self):
        while True:
            with self._changed:
                wish, self._wish = self._wish, None
                if wish is None:
                    self._worker = None
                    return
            self._grant(wish)

    def _grant(self, wish: Wish):
        self.error = None
        try:
            shown = wish()
            for page in shown if isinstance(shown, Iterator) else [shown]:
                self.picture.value = page_html(page)
                if self._wish is not None:  # somebody wants something else by now
                    return
        except Exception as error:
            self.error = error
            said = f"{type(error).__name__}: {error}"
            self.picture.value = f'<div class="q-bad">{escape(said)}</div>'


class Runner(Explorer):
    """An explorer of what takes a while: it draws when Run is pressed, and Stop ends it."""

    @property
    def orders(self):
        return {"run": self.run, "stop": self.stop, "reset": self.reset}

    def run(self) -> None:
        self._want(self.drawing())

    def stop(self) -> None:
        """End after the picture that is being made, which stays."""
        self._want(lambda: iter([]))

    def opening(self):
        return lambda: Note("Press Run.", [])

    def _moved(self):
        """Controls act with the next Run."""
