"""Explorers: small widgets with a question, some controls, and a page of figures below.

    @explorer("Which byte changed the state most?", steps=slider("bytes", [1, 2, 3, 4]))
    def watch(steps: int = 4): ...

    watch(steps=2)      the page for these values
    watch.widget()      the widget; its controls start at the defaults of the function

A page is a pure function of the controls; a generator yields pages that replace each other, for
what takes a while. A callback only records the latest request; a worker thread, alive only while
there are requests, draws it. An error is shown in the widget and kept in `error`.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from importlib import resources

import ipywidgets as widgets

from ..study.figures import Note, Page
from .pictures.charts import page_html
from .pictures.svg import show_text
from .show import describe_error

_Request = Callable[[], Page | Iterator[Page]]
_Control = Callable[[object], widgets.Widget]  # from its initial value
_STYLE = f"<style>{resources.files(__package__).joinpath('explore.css').read_text('utf-8')}</style>"


def explorer(question: str, *, runs: bool = False, **controls: _Control) -> Callable:
    """Decorate a draw function with a method `widget`, which shows it as an Explorer.

    `controls` has one entry for each argument that the reader may change. With `runs=True` the
    widget is a Runner: it draws when Run is pressed.
    """

    def decorate(draw):
        parameters = inspect.signature(draw).parameters

        def widget() -> Explorer:
            made = {name: make(parameters[name].default) for name, make in controls.items()}
            return (Runner if runs else Explorer)(question, made, draw)

        draw.widget = widget
        return draw

    return decorate


def choice(name: str, options: list) -> _Control:
    """One of several options."""
    return lambda value: widgets.Dropdown(options=options, value=value, description=name)


def slider(name: str, options: list) -> _Control:
    """One of several options in order, all in sight: lengths, widths, rates.

    Radio buttons in a row, since the sliders of ipywidgets have no name that a screen reader knows.
    """
    return lambda value: widgets.RadioButtons(
        options=options, value=value, description=name, tooltip=name
    )


def switch(name: str) -> _Control:
    """On or off."""
    return lambda value: widgets.Checkbox(value=value, description=name, indent=False)


def line(name: str) -> _Control:
    """A short text."""
    return lambda value: widgets.Text(value=value, description=name, continuous_update=False)


class Explorer:
    """A widget that redraws whenever a control changes.

    Args     controls   by the name of the argument of `draw` that they set
             draw       returns a page of figures, or yields pages that replace each other
    """

    def __init__(
        self,
        question: str,
        controls: dict[str, widgets.Widget],
        draw: Callable[..., Page | Iterator[Page]],
    ):
        self.controls, self._draw = controls, draw
        self.error: BaseException | None = None
        self._first = {name: control.value for name, control in controls.items()}
        self._changed = threading.Condition()
        self._request: _Request | None = None
        self._worker: threading.Thread | None = None
        self.picture = widgets.HTML()
        self.picture.add_class("q-picture")
        self.buttons = {
            name: widgets.Button(description=name.capitalize()) for name in self.actions
        }
        for name, button in self.buttons.items():
            button.add_class(f"q-{name}")
            button.on_click(lambda _, name=name: self.actions[name]())
        for name, control in controls.items():
            control.add_class(f"q-{name}")
            control.observe(lambda _: self._moved(), "value")
        head = widgets.HTML(f'{_STYLE}<div class="q-question">{show_text(question)}</div>')
        row = widgets.HBox([*controls.values(), *self.buttons.values()])
        row.add_class("q-row")
        self.widget = widgets.VBox([head, row, self.picture])
        self.widget.add_class("q-explore")
        self._draw_page(self.opening())

    def _repr_mimebundle_(self, **options):
        return self.widget._repr_mimebundle_(**options)

    # ------------------------------------------------------------ buttons

    @property
    def actions(self) -> dict[str, Callable[[], None]]:
        """What each button does."""
        return {"reset": self.reset}

    def reset(self) -> None:
        """Set all controls to their initial values, and show the first page."""
        for name, value in self._first.items():
            self.controls[name].value = value
        self._ask(self.opening())

    def wait(self, seconds: float = 60.0) -> None:
        """Wait until everything requested is drawn.

        Raises   the error of the drawing, if there was one
        """
        if worker := self._worker:
            worker.join(seconds)
        if self.error:
            raise self.error

    def opening(self) -> _Request:
        """What is shown first."""
        return self.drawing()

    def drawing(self) -> _Request:
        """What the controls ask for now."""
        values = {name: control.value for name, control in self.controls.items()}
        return lambda: self._draw(**values)

    def _moved(self):
        self._ask(self.drawing())

    # ------------------------------------------------------------ drawing

    def _ask(self, request: _Request):
        with self._changed:
            self._request = request
            if self._worker is None:
                self._worker = threading.Thread(
                    target=self._work, name="qllk-explorer", daemon=True
                )
                self._worker.start()

    def _work(self):
        while True:
            with self._changed:
                request, self._request = self._request, None
                if request is None:
                    self._worker = None
                    return
            self._draw_page(request)

    def _draw_page(self, request: _Request):
        self.error = None
        try:
            shown = request()
            for page in shown if isinstance(shown, Iterator) else [shown]:
                self.picture.value = page_html(page)
                if self._request is not None:  # a later request replaces this one
                    return
        except BaseException as error:  # of any kind, or the worker would end without a word
            self.error = error
            self.picture.value = f'<div class="q-bad">{show_text(describe_error(error))}</div>'


class Runner(Explorer):
    """An explorer for what takes a while: it draws when Run is pressed; Stop ends it."""

    @property
    def actions(self):
        return {"run": self.run, "stop": self.stop, "reset": self.reset}

    def run(self) -> None:
        self._ask(self.drawing())

    def stop(self) -> None:
        """End after the current page, which stays."""
        self._ask(lambda: iter([]))

    def opening(self):
        return lambda: Note("Press Run.", [])

    def _moved(self):
        """Controls take effect with the next Run."""
