"""Panels: widgets that look at a run. They set values and queue commands, and do nothing else.

Inputs are written by the browser; outputs by one thread at a time, which draws a few times a
second, and only what has changed. A callback never waits and never touches a model.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import wraps
from importlib import resources

import ipywidgets as widgets
from torch import nn

from ...presets import PRESETS, find_spec, name_of, recipe_of
from ...spec import Spec
from ...text.corpora import corpus, corpus_names
from ...text.tasks import TASKS
from ...training import devices
from ...training.recipe import Recipe
from ...training.trainer import COMMANDS, Trainer
from ..pictures.svg import show_text
from ..show import describe_error, fast
from .run import Run
from .view import Earlier, render

_FRAMES_PER_SECOND = 8
_EARLIER_RUNS = 3  # that are drawn behind the present one
_FILE = "a file or folder …"
_STYLE = f"<style>{resources.files(__package__).joinpath('panel.css').read_text('utf-8')}</style>"
_HINT = (
    '<div class="q-hint">Learning rate and batch apply at once, device and precision with Switch, '
    "model and corpus with the next Start. Interrupt is not Stop.</div>"
)


def lab(
    name: str = "lab",
    *,
    model: str | Spec | Callable[[], nn.Module] | None = None,
    corpus: str = "stdlib",
    **changes: object,
) -> Panel:
    """The live trainer, as a widget. Making it again stops the older run of the same name.

        panel = lab("mine", model="qllk-3-nano", steps=500, batch=4)

    model     what is chosen at first: a preset, a Spec, the path of a Spec's JSON, or a function
              that makes a module of your own, which is called for each new run, on its thread
    changes   fields of `Recipe` that differ from the lab's defaults, which depend on the model
    Raises    ValueError when the model is a module: a second run would continue from its weights
    """
    if isinstance(model, nn.Module):
        raise ValueError(
            f"lab needs a function that makes a {type(model).__name__}, since each run trains a "
            "new one; give the function itself, as in lab(model=make_model)"
        )
    if isinstance(model, str) and model not in PRESETS:
        model = find_spec(model)
    return Panel(name, model or ("qllk-3-nano" if fast() else "qllk-3"), corpus, changes)


def _lab_recipe(model: str | Callable, changes: dict) -> Recipe:
    fields = {"steps": 5000, "warmup": 0.03, "validate_every": 50, **_recipe_of(model)}
    fields |= {"window": 256, "validate_bytes": 1 << 12} if fast() else {"validate_bytes": 1 << 14}
    return Recipe(**fields | changes)


def _recipe_of(model: object) -> dict[str, float | int]:
    """The fields of a recipe that suit a model; only presets have some of their own."""
    return recipe_of(model if isinstance(model, str) else "")


def _one_at_a_time(method):
    """A method of a panel that no other thread interrupts with another one. None of them waits."""

    @wraps(method)
    def alone(panel, *arguments):
        with panel._acting:
            return method(panel, *arguments)

    return alone


class Panel:
    """The widget around the run of the given name. Each button is also a method."""

    def __init__(self, name: str, model: str | Callable[[], nn.Module], corpus: str, changes: dict):
        self.name, self._changes = name, changes
        self._recipe = _lab_recipe(model, changes)  # of the model that is chosen
        self._acting = threading.RLock()  # guards the run and the controls
        self._offering = False  # while the panel itself sets controls
        self._drawing = threading.Lock()
        self.run: Run | None = None
        self._earlier: deque[Earlier] = deque(maxlen=_EARLIER_RUNS)
        self._drawn: tuple = ()  # the run and the version that the outputs show
        self._drawer: object = None  # a token; only the thread that has the latest one draws
        self._make_controls(model, corpus)
        self._make_outputs()
        self.widget = widgets.VBox(self._rows())
        self.widget.add_class("q-lab")
        self._renew()
        self.draw()

    def _repr_mimebundle_(self, include=None, exclude=None):
        return self.widget._repr_mimebundle_(include=include, exclude=exclude)

    # ------------------------------------------------------------ commands

    @_one_at_a_time
    def start(self) -> None:
        """Start the idle run, or a new one if the controls ask for another model or corpus."""
        if self.run.state == "idle":
            self._obey_controls()
        elif self.run.state not in ("running", "paused"):
            self._renew()
        self.run.start()
        self._follow()

    @_one_at_a_time
    def pause(self) -> None:
        """Pause, or resume if paused."""
        (self.run.resume if self.run.state == "paused" else self.run.pause)()
        self._follow()

    @_one_at_a_time
    def stop(self) -> None:
        self.run.stop()
        self._follow()

    @_one_at_a_time
    def reset(self) -> None:
        """Stop the run and prepare a new one."""
        self._renew()
        self._follow()

    @_one_at_a_time
    def switch(self) -> None:
        """Move the running training to the chosen device and precision."""
        now = self.run.snapshot().record
        for name in ("device", "precision"):
            wanted = self.controls[name].value
            if now is None or getattr(now, name) != wanted:
                self._send(name, wanted)

    @_one_at_a_time
    def save(self) -> None:
        """Write a checkpoint to the path in the controls."""
        self.run.save(self.controls["path"].value)
        self._follow()

    @_one_at_a_time
    def load(self) -> None:
        """Replace the run by the saved one, which the controls then show; Start continues it."""
        if self.run.state not in ("idle", "running", "paused"):
            self._renew()
        run = self.run
        run.load(self.controls["path"].value, lambda trainer: self._show_loaded(run, trainer))
        self._follow()

    def advance(self, steps: int) -> None:
        """Take some steps in this cell, and draw meanwhile. Interrupt stops between two steps.

        For a first picture, and for front ends that do not show what a thread draws.
        """
        due = time.monotonic()
        if self.run.state == "idle":
            self._obey_controls()
        try:
            for _ in range(steps):
                self.run.advance(1)
                if time.monotonic() >= due:
                    self.draw()
                    due = time.monotonic() + 1 / _FRAMES_PER_SECOND
        except KeyboardInterrupt:
            self.run.note("interrupted between two steps; the run can be continued")
        finally:
            self.draw()

    def _send(self, name, value):
        self.run.send(name, value)
        self._chosen[name] = value
        if self.run.state != "running":
            self.run.note(f"{name} {value}: takes effect with the next step")
        self._follow()

    # ------------------------------------------------------------ the run

    def _choices(self) -> dict:
        """What the controls ask for: model, corpus, and fields of the recipe."""
        chosen = {name: widget.value for name, widget in self.controls.items() if name != "path"}
        typed = chosen.pop("file")
        return chosen | {"corpus": typed if chosen["corpus"] == _FILE else chosen["corpus"]}

    def _renew(self):
        if self.run and (now := self.run.snapshot()).train:
            self._earlier.append(Earlier.of(now, self._settings()))
        self._chosen = chosen = self._choices()
        self._recipe = recipe = _lab_recipe(chosen["model"], self._changes)
        self.run = Run(lambda: _build_trainer(chosen, recipe), self.name)

    def _settings(self) -> dict:
        """What the run was given, in words."""
        model, offered = self._chosen["model"], self.controls["model"].options
        labels = [label for label, value in offered if value == model]
        return self._chosen | {"model": labels[0] if labels else "another"}

    @_one_at_a_time
    def _obey_controls(self):
        """Let the idle run be what the controls show.

        If it was loaded or advanced, it goes on with another learning rate, batch, device or
        precision, and is replaced where the model or the corpus is another one.
        """
        run = self.run
        wanted = {n: v for n, v in self._choices().items() if v != self._chosen[n]}
        if (run.trainer or run.alive) and wanted.keys() <= COMMANDS.keys():
            for name, value in wanted.items():
                self._send(name, value)
        elif wanted:
            step = run.snapshot().step
            self._renew()
            if step:
                said = f"a new run, since another {' and '.join(wanted)} was chosen"
                self.run.note(f"{said}; the one before had taken {step} steps")

    @_one_at_a_time
    def _show_loaded(self, run, trainer):
        """Let the controls show a run that was loaded. Called on the run's thread."""
        if run is not self.run:
            return
        name, source = trainer.name, trainer.corpus.source
        model = name if name in PRESETS else trainer.spec
        offered = self.controls["model"].options
        if model not in [value for _, value in offered]:
            self._offer("model", options=[*offered, (name, model)])
        known = source in [value for _, value in self.controls["corpus"].options]
        shown = {"model": model, "corpus": source if known else _FILE}
        shown |= {} if known else {"file": source}
        shown |= {"device": trainer.place.device, "precision": trainer.place.precision}
        shown |= {"lr": trainer.lr, "batch": trainer.batch}
        shown |= {name: value for at, name, value in trainer.pending if at is None}
        for control, value in shown.items():
            self._offer(control, value=value)
        self._chosen = self._choices()

    # ------------------------------------------------------------ drawing

    def draw(self) -> None:
        """Show the run as it is now, unless that is shown already."""
        with self._drawing:
            run = self.run
            if self._drawn == (run, run.version):
                return
            now = run.snapshot()
            self._drawn = run, now.version
            try:
                frame = render(now, self._recipe.steps, self._settings(), [*self._earlier])
            except Exception as error:  # the thread that draws must not end without a word
                said = show_text(f"this cannot be shown: {describe_error(error)}")
                self.outputs["status"].value = f'<div class="q-bad">{said}</div>'
                return
            for name, output in self.outputs.items():
                output.value = getattr(frame, name)
            for name, button in self.buttons.items():
                button.disabled = name not in frame.enabled
            self.buttons["pause"].description = frame.pause

    def _follow(self):
        """Draw from a new thread until the run's own thread ends, and once more."""
        self._drawer = token = object()
        threading.Thread(
            target=self._draw_repeatedly, args=(token,), name="qllk-panel", daemon=True
        ).start()

    def _draw_repeatedly(self, token):
        alive = True
        while alive and self._drawer is token:
            alive = self.run.alive
            self.draw()
            if alive:
                time.sleep(1 / _FRAMES_PER_SECOND)

    # ------------------------------------------------------------ widgets

    def _make_controls(self, model, corpus):
        offers = devices.available()
        self._precisions = {device.name: device.precisions for device in offers}
        sources = _corpus_choices()
        known = corpus in [source for _, source in sources]
        recipe = self._recipe
        self.controls = {
            "model": widgets.Dropdown(
                options=_model_choices(model), value=model, description="model"
            ),
            "corpus": widgets.Dropdown(
                options=sources, value=corpus if known else _FILE, description="corpus"
            ),
            "file": widgets.Text(
                value="" if known else corpus,
                placeholder="a path, if chosen on the left",
                description="file or folder",
            ),
            "path": widgets.Text(value="runs/lab.safetensors", description="checkpoint"),
            "device": widgets.Dropdown(
                options=[(f"{d.name} · {d.label}", d.name) for d in offers], description="device"
            ),
            "precision": widgets.Dropdown(options=offers[0].precisions, description="precision"),
            "lr": widgets.FloatText(value=recipe.lr, step=0.0005, description="learning rate"),
            "batch": widgets.IntText(value=recipe.batch, description="batch, windows per step"),
        }
        for name, widget in self.controls.items():
            widget.add_class(f"q-{name}")
            widget.continuous_update = False
        self.controls["device"].observe(self._offer_precisions, "value")
        self.controls["model"].observe(self._offer_recipe, "value")
        for name in ("lr", "batch"):
            self.controls[name].observe(self._apply_now, "value")

    def _make_outputs(self):
        names = ("status", "facts", "loss", "states", "sample", "notes")
        self.outputs = {name: widgets.HTML() for name in names}
        for name, widget in self.outputs.items():
            widget.add_class(f"q-{name}")
        titles = {
            "start": "Train the chosen model on the chosen corpus",
            "pause": "Pause, or resume",
            "stop": "Stop this run",
            "reset": "Stop this run and clear the panel",
            "switch": "Move the running training to the chosen device and precision",
            "save": "Write a checkpoint",
            "load": "Continue from a checkpoint",
        }
        self.buttons = {
            name: widgets.Button(description=name.capitalize(), tooltip=title)
            for name, title in titles.items()
        }
        for name, button in self.buttons.items():
            button.add_class(f"q-{name}")
            button.on_click(self._guarded(getattr(self, name)))

    def _rows(self):
        out = self.outputs
        rows = [
            (widgets.Box(list(self.controls.values())), "q-controls"),
            (widgets.HBox(list(self.buttons.values())), "q-buttons"),
            (widgets.HBox([out["loss"], out["states"]]), "q-charts"),
            (widgets.HBox([out["sample"], out["notes"]]), "q-texts"),
        ]
        for row, css in rows:
            row.add_class(css)
        controls, buttons, charts, texts = (row for row, _ in rows)
        style, hint = widgets.HTML(_STYLE), widgets.HTML(_HINT)
        return [style, controls, buttons, hint, out["status"], out["facts"], charts, texts]

    def _offer(self, name, **traits):
        """Set a control without sending a command."""
        before, self._offering = self._offering, True
        try:
            self.controls[name].set_trait(*traits.popitem())
        finally:
            self._offering = before

    @_one_at_a_time
    def _offer_precisions(self, change):
        self._offer("precision", options=self._precisions[change["new"]])

    @_one_at_a_time
    def _offer_recipe(self, change):
        """The learning rate and batch that suit the chosen model; the current run keeps its own."""
        for name in ("lr", "batch"):
            self._offer(name, value=_recipe_of(change["new"])[name])

    @_one_at_a_time
    def _apply_now(self, change):
        """A change of learning rate or batch during a run is sent to it at once."""
        name = "lr" if change["owner"] is self.controls["lr"] else "batch"
        if self.run.state in ("running", "paused") and not self._offering:
            self._guarded(lambda: self._send(name, change["new"]))(None)

    def _guarded(self, act: Callable[[], None]):
        """A callback that calls `act`, and shows its errors in the panel."""

        def callback(_):
            try:
                act()
            except Exception as error:
                self.run.note(str(error), bad=True)
                self._follow()

        return callback


def _model_choices(chosen) -> list[tuple[str, object]]:
    """(label, model) of each model on offer: one of your own, and the presets."""
    if isinstance(chosen, str):
        own = []
    else:
        label = name_of(chosen) if isinstance(chosen, Spec) else "your own model"
        own = [(label, chosen)]
    return [*own, *((name, name) for name in PRESETS)]


def _corpus_choices() -> list[tuple[str, str]]:
    """(label, source) of each corpus on offer; the last one stands for any path."""
    named = [(name, name) for name in corpus_names()]
    tokenized = ("stdlib (1,024 BPE tokens)", "bpe-1024:stdlib")
    tasks = [(f"{name} (task)", f"task:{name}") for name in TASKS]
    return [*named, tokenized, *tasks, (_FILE, _FILE)]


def _build_trainer(chosen: dict, recipe: Recipe) -> Trainer:
    """The trainer that the controls ask for.

    Raises   ValueError, FileNotFoundError, ConnectionError when a choice cannot work
    """
    chosen = dict(chosen)
    model, source = chosen.pop("model"), chosen.pop("corpus")
    what = model() if callable(model) else model
    return Trainer(what, corpus(source), Recipe(**{**vars(recipe), **chosen}))
