"""Panels: widgets that look at a run. They set values and queue orders, and do nothing else.

Inputs are written by the browser, outputs by one thread at a time that draws at most HZ times a
second, and only what has changed. A callback never waits and never touches a model.
"""

from __future__ import annotations

import threading
import time

import ipywidgets as widgets

from ...presets import PRESETS, peak_lr
from ...text.corpora import corpus, corpus_names
from ...text.tasks import TASKS
from ...training import devices
from ...training.recipe import Recipe
from ...training.trainer import Trainer
from ..show import fast
from .run import Run
from .view import view

HZ = 8
FILE = "a file or folder …"
STYLE = """<style>
.q-lab { width: 836px; max-width: 100%; padding: 4px 2px; overflow: visible;
  color: var(--jp-ui-font-color1, #222); font-family: var(--jp-ui-font-family, sans-serif);
  font-size: 13px; }
.q-lab .widget-html, .q-lab .widget-html-content { margin: 0; line-height: 1.4; font-size: 13px;
  overflow: visible; }
.q-lab small { font-size: 11px; opacity: 0.65; font-weight: normal; }
.q-controls { display: grid !important; grid-template-columns: repeat(4, minmax(0, 1fr));
  gap: 6px 12px; overflow: visible; }
.q-controls .widget-inline-hbox { display: flex; flex-direction: column; align-items: stretch;
  width: 100%; height: auto; margin: 0; }
.q-controls .widget-label { text-align: left; width: auto; font-size: 11px; line-height: 16px;
  height: 16px; opacity: 0.65; margin: 0; }
.q-controls .widget-inline-hbox > :last-child { flex: none; width: 100%; height: 28px; }
.q-controls select, .q-controls input { width: 100% !important; height: 28px; margin: 0; }
.q-buttons { margin: 10px 0 4px; gap: 8px; overflow: visible; }
.q-buttons button { width: 84px; margin: 0; border-radius: 4px; }
.q-buttons .q-start { background: var(--jp-brand-color1, #1976d2); color: white; }
.q-buttons .q-start:disabled, .q-buttons button:disabled { opacity: 0.4; }
.q-buttons .q-switch, .q-buttons .q-save { margin-left: 24px; }
.q-line { height: 24px; display: flex; align-items: center; gap: 8px; white-space: nowrap;
  overflow: hidden; }
.q-chip { border-radius: 9px; padding: 0 9px; font-size: 12px; line-height: 18px; color: white;
  background: #7a8288; }
.q-is-running { background: #2f8f5b; } .q-is-paused { background: #b07a1e; }
.q-is-failed { background: #c0453f; } .q-is-done { background: #3f74b5; }
.q-tiles { display: grid; grid-template-columns: repeat(6, 1fr) 1.5fr; gap: 0; height: 62px;
  margin: 6px 0; border-top: 1px solid var(--jp-border-color2, #ddd);
  border-bottom: 1px solid var(--jp-border-color2, #ddd); }
.q-tiles > div { display: flex; flex-direction: column; justify-content: center; line-height: 1.3;
  white-space: nowrap; overflow: hidden; }
.q-tiles b { font-size: 16px; font-weight: 600; font-variant-numeric: tabular-nums; }
.q-charts { gap: 0; overflow: visible; }
.q-texts { gap: 12px; overflow: visible; }
.q-box { height: 184px; overflow: hidden; }
.q-box pre, .q-box ul { height: 160px; margin: 2px 0 0; padding: 7px 9px; overflow: auto;
  box-sizing: border-box; border-radius: 4px; border: 1px solid var(--jp-border-color2, #ddd);
  background: none; font-size: 12px; line-height: 16px; }
.q-box pre { font-family: var(--jp-code-font-family, monospace); white-space: pre-wrap;
  overflow-wrap: anywhere; word-break: normal; direction: ltr; unicode-bidi: bidi-override;
  color: inherit; }
.q-box pre i { opacity: 0.55; font-style: normal; }
.q-box ul { list-style: none; overflow-wrap: anywhere; }
.q-box li { margin-bottom: 3px; } .q-box li.q-bad { color: #d2544d; font-weight: 600; }
.q-box .q-empty { opacity: 0.55; }
.q-hint { opacity: 0.7; font-size: 12px; }
</style>"""
HINT = (
    '<div class="q-hint">Learning rate and batch act at once, device and precision with Switch, '
    "model and corpus with the next Start. Interrupt is not Stop.</div>"
)


def lab(name: str = "lab", *, model: str | None = None, corpus: str = "stdlib", steps=5000, **more):
    """The live trainer. A cell that makes it again stops the older run of this name.

    `more` are further fields of `Recipe`.
    """
    sizes = {"window": 256, "validate_bytes": 1 << 12} if fast() else {"validate_bytes": 1 << 14}
    model = model or ("qllk-2-nano" if fast() else "qllk-2")
    usual = {"steps": steps, "warmup": 0.03, "validate_every": 50, "lr": peak_lr(model)}
    return Panel(name, model, corpus, Recipe(**usual | sizes | more))


def corpora() -> list[tuple[str, str]]:
    """(label, source) of everything to learn from, the free path last."""
    named = [(name, name) for name in corpus_names()]
    pieces = ("stdlib, in 1,024 pieces", "bpe-1024:stdlib")
    made = [(f"{name} (task)", f"task:{name}") for name in TASKS]
    return [*named, pieces, *made, (FILE, FILE)]


class Panel:
    """A panel around the run of the given name. In code, its buttons are its methods."""

    def __init__(self, name: str, model: str, corpus: str, recipe: Recipe):
        self.name, self.recipe = name, recipe
        self._drawing = threading.Lock()
        self._drawn: tuple = ()
        self._turn: object = None  # whoever holds the newest one draws
        self._make_controls(model, corpus)
        self._make_outputs()
        self.widget = widgets.VBox(self._rows())
        self.widget.add_class("q-lab")
        self._renew()
        self.draw()

    def _repr_mimebundle_(self, **options):
        return self.widget._repr_mimebundle_(**options)

    # ------------------------------------------------------------ orders

    def start(self):
        """Go on with the idle run, or begin anew if the controls ask for another one."""
        if self.run.state != "idle" or self._choices() != self._chosen:
            self._renew()
        self.run.start()
        self._follow()

    def pause(self):
        """Pause, or resume if paused."""
        (self.run.resume if self.run.state == "paused" else self.run.pause)()
        self._follow()

    def stop(self):
        self.run.stop()
        self._follow()

    def reset(self):
        """Stop, and forget the run."""
        self._renew()
        self._follow()

    def switch(self):
        """Move the running training to the chosen device and precision."""
        now = self.run.snapshot().record
        for name in ("device", "precision"):
            wanted = self.controls[name].value
            if now is None or getattr(now, name) != wanted:
                self._send(name, wanted)

    def save(self):
        self.run.save(self.controls["path"].value)
        self._follow()

    def load(self):
        """Become the saved run; it goes on with Start or Resume."""
        if self.run.state not in ("idle", "running", "paused"):
            self._renew()
        self._chosen = self._choices()
        self.run.load(self.controls["path"].value)
        self._follow()

    def advance(self, steps: int):
        """Take some steps now, in this cell, drawing as they go; Interrupt ends it between two.

        For front ends that do not show what a thread draws, and for a first picture.
        """
        due = time.monotonic()
        try:
            for _ in range(steps):
                self.run.advance(1)
                if time.monotonic() >= due:
                    self.draw()
                    due = time.monotonic() + 1 / HZ
        except KeyboardInterrupt:
            self.run.note("interrupted; the run stands between two steps")
        finally:
            self.draw()

    def _send(self, name, value):
        self.run.send(name, value)
        if self.run.state == "paused":
            self.run.note(f"{name} {value}: acts with the next step")
        self._follow()

    # ------------------------------------------------------------ the run

    def _choices(self) -> dict:
        chosen = {name: widget.value for name, widget in self.controls.items() if name != "path"}
        typed = chosen.pop("file")
        return chosen | {"corpus": typed if chosen["corpus"] == FILE else chosen["corpus"]}

    def _renew(self):
        self._chosen = chosen = self._choices()
        self.run = Run(lambda: build_trainer(chosen, self.recipe), self.name)

    # ------------------------------------------------------------ drawing

    def draw(self):
        """Show the newest snapshot, if it is new."""
        with self._drawing:
            run = self.run
            if self._drawn == (run, run.version):
                return
            now = run.snapshot()
            self._drawn = run, now.version
            frame = view(now, self.recipe.steps)
            for name, output in self.outputs.items():
                output.value = getattr(frame, name)
            for name, button in self.buttons.items():
                button.disabled = name not in frame.enabled
            self.buttons["pause"].description = frame.pause

    def _follow(self):
        """Draw until the run's thread ends, and once more."""
        self._turn = turn = object()
        threading.Thread(target=self._pump, args=(turn,), name="qllk-panel", daemon=True).start()

    def _pump(self, turn):
        alive = True
        while alive and self._turn is turn:
            alive = self.run.alive
            self.draw()
            if alive:
                time.sleep(1 / HZ)

    # ------------------------------------------------------------ widgets

    def _make_controls(self, model, corpus):
        offers = devices.available()
        self._precisions = {device.name: device.precisions for device in offers}
        sources = corpora()
        known = corpus in [source for _, source in sources]
        recipe = self.recipe
        self.controls = {
            "model": widgets.Dropdown(options=list(PRESETS), value=model, description="model"),
            "corpus": widgets.Dropdown(
                options=sources, value=corpus if known else FILE, description="corpus"
            ),
            "file": widgets.Text(
                value="" if known else corpus,
                placeholder="path, if chosen on the left",
                description="file or folder",
            ),
            "path": widgets.Text(value="runs/lab.safetensors", description="checkpoint"),
            "device": widgets.Dropdown(
                options=[(f"{d.name} · {d.label}", d.name) for d in offers], description="device"
            ),
            "precision": widgets.Dropdown(options=offers[0].precisions, description="precision"),
            "lr": widgets.FloatText(value=recipe.lr, step=0.0005, description="learning rate"),
            "batch": widgets.IntText(value=recipe.batch, description="batch, rows per step"),
        }
        for name, widget in self.controls.items():
            widget.add_class(f"q-{name}")
            widget.continuous_update = False
        self.controls["device"].observe(self._offer_precisions, "value")
        self.controls["model"].observe(self._offer_lr, "value")
        for name in ("lr", "batch"):
            self.controls[name].observe(self._live, "value")

    def _make_outputs(self):
        names = ("status", "facts", "loss", "states", "sample", "notes")
        self.outputs = {name: widgets.HTML() for name in names}
        for name, widget in self.outputs.items():
            widget.add_class(f"q-{name}")
        titles = {
            "start": "Train what the controls say",
            "pause": "Pause, or go on",
            "stop": "End this run",
            "reset": "End this run and clear the panel",
            "switch": "Move the running training to the chosen device and precision",
            "save": "Write a checkpoint",
            "load": "Become the run that the checkpoint holds",
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
        out["sample"].layout = widgets.Layout(width="504px")
        out["notes"].layout = widgets.Layout(width="320px")
        style, hint = widgets.HTML(STYLE), widgets.HTML(HINT)
        return [style, controls, buttons, hint, out["status"], out["facts"], charts, texts]

    def _offer_precisions(self, change):
        self.controls["precision"].options = self._precisions[change["new"]]

    def _offer_lr(self, change):
        """What suits the model that Start would train; the run under way keeps its own."""
        self.controls["lr"].unobserve(self._live, "value")
        self.controls["lr"].value = peak_lr(change["new"])
        self.controls["lr"].observe(self._live, "value")

    def _live(self, change):
        """A learning rate or batch that is changed while training acts at once."""
        name = "lr" if change["owner"] is self.controls["lr"] else "batch"
        if self.run.state in ("running", "paused"):
            self._guarded(lambda: self._send(name, change["new"]))(None)

    def _guarded(self, act):
        """A callback whose errors are seen in the panel."""

        def callback(_):
            try:
                act()
            except Exception as error:
                self.run.note(str(error), bad=True)
                self._follow()

        return callback


def build_trainer(chosen: dict, recipe: Recipe) -> Trainer:
    """The trainer that the controls ask for.

    Raises   ValueError, FileNotFoundError, ConnectionError for choices that cannot work
    """
    chosen = dict(chosen)
    name, source = chosen.pop("model"), chosen.pop("corpus")
    return Trainer(name, corpus(source), Recipe(**{**vars(recipe), **chosen}))
