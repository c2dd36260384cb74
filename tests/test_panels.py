"""The panel without a browser: every control and button, with a real run behind them."""

import gc
import json
import math
import random
import signal
import threading
import time
import weakref
from html.parser import HTMLParser

import pytest
import torch
from helpers import TINY
from run_helpers import (  # noqa: F401 - the fixture acts on every test here
    CORPUS,
    no_thread_is_left,
    step_of,
    threads,
    wait_for,
    wait_steps,
)
from safetensors.torch import save as to_bytes

from qllk.lab.lessons.exercises.assembly import Model
from qllk.lab.live import panels
from qllk.presets import PRESETS
from qllk.training import checkpoint, devices
from qllk.training.recipe import Recipe
from qllk.training.trainer import Trainer


@pytest.fixture
def panel():
    sizes = {"window": 64, "batch": 1, "validate_every": 5, "validate_bytes": 256}
    panel = panels.lab("test", model="qllk-2-nano", corpus=CORPUS.source, **sizes)
    yield panel
    panel.run.stop(wait=60)


def click(panel, name):
    wait_for(lambda: not panel.buttons[name].disabled)
    panel.buttons[name].click()


def says(panel, name, text):
    return wait_for(lambda: text in panel.outputs[name].value)


def test_the_panel_offers_every_preset_and_everything_this_machine_can_do(panel):
    assert dict(panel.controls["model"].options) == {name: name for name in PRESETS}
    assert "noise (task)" in dict(panel.controls["corpus"].options)
    offered = panel._precisions[panel.controls["device"].value]
    assert panel.controls["precision"].options == offered


@pytest.mark.parametrize(
    "spec", TINY.values(), ids=TINY
)  # each preset small, as a learner would run it
def test_the_lab_trains_shows_and_switches_every_preset(spec, monkeypatch):
    monkeypatch.setitem(PRESETS, "small", spec)
    sizes = {"window": 64, "batch": 1, "validate_every": 2, "validate_bytes": 128}
    panel = panels.lab("test", model="small", corpus=CORPUS.source, **sizes)
    panel.advance(2)
    assert "small on copy" in panel.outputs["status"].value
    assert "held-out loss" in panel.outputs["facts"].value
    assert "nothing yet" not in panel.outputs["sample"].value
    now = panel.run.snapshot()
    assert now.valid
    assert bool(now.states) == (spec.family != "encoder")
    said = "this model keeps no state" in panel.outputs["states"].value
    assert said == (spec.family == "encoder")
    shown = "rows in use after a window" in panel.outputs["states"].value
    assert shown == bool(spec.recall)
    assert "q-bad" not in panel.outputs["notes"].value


def test_a_preset_that_cannot_be_trained_here_says_why(monkeypatch):
    monkeypatch.setattr(devices, "free_bytes", lambda device: 1 << 33)
    panel = panels.lab("test", model="swa-mla-xl", corpus=CORPUS.source)
    panel.start()
    says(panel, "notes", "but cpu has 8.0")
    says(panel, "status", ">failed<")


def test_a_preset_is_given_the_vocabulary_that_the_text_asks_for():
    panel = panels.lab("test", model="randygpt-0.3", corpus=CORPUS.source, window=64, batch=1)
    panel.advance(1)
    assert panel.run.trainer.spec.vocab_size == 256
    says(panel, "status", "randygpt-0.3 on copy")


def test_a_sample_that_cannot_be_written_is_noted_and_training_goes_on(panel, monkeypatch):
    def broken(*_):
        raise ValueError("no words")

    monkeypatch.setattr("qllk.training.previews.generate", broken)
    panel.advance(3)
    says(panel, "notes", "no sample: no words")
    says(panel, "facts", "<b>3</b>")


def test_every_button_of_the_panel_does_its_work(panel, tmp_path):
    says(panel, "status", ">idle<")
    click(panel, "start")
    says(panel, "status", "qllk-2-nano on copy")
    wait_steps(panel.run, 3)
    click(panel, "pause")
    says(panel, "status", ">paused<")
    assert panel.buttons["pause"].description == "Resume"
    click(panel, "pause")
    says(panel, "status", ">running<")
    panel.controls["precision"].value = "bfloat16"
    click(panel, "switch")
    says(panel, "facts", "cpu bfloat16")
    panel.controls["lr"].value = 0.001
    says(panel, "notes", "lr is now 0.001")
    panel.controls["batch"].value = 2
    says(panel, "notes", "batch is now 2")
    panel.controls["path"].value = str(tmp_path / "saved")
    click(panel, "save")
    says(panel, "notes", "saved to")
    click(panel, "load")
    says(panel, "notes", "loaded")
    click(panel, "stop")
    says(panel, "status", ">stopped<")
    click(panel, "reset")
    says(panel, "status", ">idle<")
    assert step_of(panel.run) == 0


def test_the_panel_goes_on_with_an_advanced_run_unless_the_controls_ask_for_another(panel):
    panel.advance(4)
    says(panel, "facts", "<b>4</b>")
    first = panel.run
    panel.start()
    assert panel.run is first
    panel.reset()
    panel.advance(1)
    panel.controls["model"].value = "qllk-2-local"
    panel.start()
    says(panel, "status", "qllk-2-local on copy")


def test_a_model_brings_the_learning_rate_that_suits_it_and_the_run_under_way_keeps_its_own(panel):
    assert panel.controls["lr"].value == Recipe.lr
    panel.start()
    wait_steps(panel.run, 2)
    panel.controls["model"].value = "bert-nano"
    assert panel.controls["lr"].value == 1e-3
    wait_steps(panel.run, 2)
    assert panel.run.trainer.log == []
    panel.controls["lr"].value = 2e-3
    says(panel, "notes", "lr is now 0.002")
    panel.controls["model"].value = "qllk-2"
    assert panel.controls["lr"].value == Recipe.lr
    assert panels.lab("other", model="bert-nano").controls["lr"].value == 1e-3
    assert panels.lab("other", model="bert-nano", lr=0.1).controls["lr"].value == 0.1


def test_a_model_brings_the_window_that_suits_it_unless_one_was_given():
    long = "task:copy:40000:0"
    free = panels.lab("test", model="qllk-2-nano", corpus=long)
    given = panels.lab("other", model="qllk-2-nano", corpus=long, window=64)
    for panel, expected in ((free, 2048), (given, 64)):
        panel.controls["model"].value = "qllk-3-nano"
        panel.reset()
        panel.advance(1)
        recipe = panel.run.trainer.recipe
        assert (recipe.batch, recipe.window) == (1, expected)


def test_a_loaded_run_goes_on_with_start(panel, tmp_path):
    panel.controls["path"].value = str(tmp_path / "saved")
    panel.advance(4)
    panel.save()
    says(panel, "notes", "saved to")
    panel.reset()
    panel.load()
    says(panel, "notes", "loaded")
    panel.start()
    wait_for(lambda: step_of(panel.run) >= 6)


def test_errors_are_shown_in_the_panel_with_their_reason(panel):
    panel.controls["corpus"].value = panels._FILE
    panel.controls["file"].value = "<missing>"
    panel.start()
    says(panel, "notes", "no corpus &#x27;&lt;missing&gt;&#x27;: give a file")
    says(panel, "status", ">failed<")
    panel.controls["file"].value = CORPUS.source
    panel.controls["lr"].value = -1
    panel.start()
    says(panel, "notes", "lr must be a number above 0")
    panel.controls["lr"].value = 0.001
    panel.start()
    wait_steps(panel.run, 2)
    panel.controls["batch"].value = 0
    says(panel, "notes", "batch must be a whole number above 0")
    assert panel.run.state == "running"


def test_a_callback_that_fails_is_seen_in_the_panel(panel):
    def broken(_=None):
        raise OSError("the disk is gone")

    panel._guarded(broken)(None)
    says(panel, "notes", "the disk is gone")


# ---------------------------------------------------------------- what it shows is what it trains


def trains_what_it_shows(panel):
    """Wait for the next step; then the controls say what the trainer trains, and how."""
    wait_steps(panel.run, 1)
    trainer, shown = panel.run.trainer, panel._choices()
    wait_for(lambda: not [at for at, _, _ in trainer.pending if at is None])
    model = shown["model"]
    model = PRESETS[model] if isinstance(model, str) else model
    return (
        trainer.spec.but(vocab_size=256) == model.but(vocab_size=256)
        and shown["corpus"] in (trainer.corpus.source, trainer.corpus.name)
        and (shown["lr"], shown["batch"]) == (trainer.lr, trainer.batch)
        and (shown["device"], shown["precision"]) == (trainer.place.device, trainer.place.precision)
    )


@pytest.fixture
def saved(tmp_path):
    """A run of another model, with another learning rate and batch, on another text."""
    path = tmp_path / "saved"
    sizes = {"window": 64, "validate_bytes": 256}
    other = panels.lab("saved", model="bert-nano", corpus="task:noise:5000:3", lr=3e-3, **sizes)
    other.controls["batch"].value = 2
    other.advance(4)
    other.controls["path"].value = str(path)
    other.save()
    says(other, "notes", "saved to")
    return path


def load(panel, path):
    panel.controls["path"].value = str(path)
    panel.load()
    says(panel, "notes", "load")


def test_a_model_chosen_before_a_load_that_fails_is_the_one_that_start_trains(panel, tmp_path):
    panel.controls["model"].value = "gpt-nano"
    load(panel, tmp_path / "none")
    panel.start()
    assert trains_what_it_shows(panel)
    assert panel.run.trainer.name == "gpt-nano"


def test_a_loaded_run_sets_the_controls_and_start_continues_it(panel, saved):
    load(panel, saved)
    shown = {name: widget.value for name, widget in panel.controls.items()}
    assert (shown["model"], shown["lr"], shown["batch"]) == ("bert-nano", 3e-3, 2)
    assert (shown["corpus"], shown["file"]) == (panels._FILE, "task:noise:5000:3")
    panel.start()
    assert trains_what_it_shows(panel)
    assert panel.run.trainer.log == []
    assert step_of(panel.run) > 4


def test_a_loaded_run_goes_on_with_the_learning_rate_and_the_precision_that_are_set(panel, saved):
    load(panel, saved)
    panel.controls["lr"].value = 1e-4
    panel.controls["precision"].value = "bfloat16"
    panel.start()
    assert trains_what_it_shows(panel)
    assert panel.run.trainer.log == [[4, "precision", "bfloat16"], [4, "lr", 1e-4]]


def test_a_command_that_waits_in_a_loaded_run_is_shown_and_obeyed(panel, tmp_path):
    panel.start()
    wait_steps(panel.run, 1)
    panel.pause()
    panel.controls["lr"].value = 1e-4
    says(panel, "notes", "takes effect with the next step")
    panel.controls["path"].value = str(tmp_path / "waiting")
    panel.save()
    says(panel, "notes", "saved to")
    panel.reset()
    panel.controls["lr"].value = 2e-2
    load(panel, tmp_path / "waiting")
    assert panel.controls["lr"].value == 1e-4
    panel.start()
    assert trains_what_it_shows(panel)
    assert [name for _, name, _ in panel.run.trainer.log] == ["lr"]


def test_another_model_after_a_load_starts_a_new_run_and_says_so(panel, saved):
    load(panel, saved)
    panel.controls["model"].value = "qllk-2-local"
    panel.start()
    assert trains_what_it_shows(panel)
    says(panel, "notes", "a new run, since another model")
    says(panel, "notes", "the one before had taken 4 steps")


def test_a_run_that_is_loaded_while_another_one_trains_sets_the_controls(panel, saved):
    panel.start()
    wait_steps(panel.run, 2)
    panel.controls["model"].value = "gpt-nano"
    panel.controls["lr"].value = 1e-2
    load(panel, saved)
    assert trains_what_it_shows(panel)
    assert panel.run.trainer.name == "bert-nano"
    assert panel.run.trainer.log == []


def test_a_loaded_model_that_is_no_preset_can_be_started_again(panel, tmp_path):
    run = Trainer(TINY["qllk-2"], CORPUS, Recipe(window=32, batch=1))
    next(run)
    checkpoint.save(run, tmp_path / "saved")
    load(panel, tmp_path / "saved")
    assert panel.controls["model"].label == "a spec of your own"
    panel.start()
    assert trains_what_it_shows(panel)
    panel.reset()
    panel.start()
    assert trains_what_it_shows(panel)
    panel.controls["model"].value = "qllk-2-nano"
    panel.reset()
    panel.start()
    assert trains_what_it_shows(panel)


@pytest.mark.parametrize("damage", [{"state_rms": {"a": "large"}}, {"rows_in_use": {"a": [1]}}])
def test_a_file_whose_facts_cannot_be_drawn_is_refused_and_the_panel_goes_on(
    panel, saved, tmp_path, damage
):
    tensors, metadata = checkpoint.read(saved)
    text = json.dumps(metadata | damage)
    header = {"format": "3", "metadata": text, "sha256": checkpoint.digest(tensors, text)}
    (tmp_path / "odd").write_bytes(to_bytes(tensors, header))
    panel.start()
    wait_steps(panel.run, 1)
    load(panel, tmp_path / "odd")
    says(panel, "notes", "metadata is damaged")
    assert trains_what_it_shows(panel)
    says(panel, "status", ">running<")


def test_a_text_that_is_overwritten_by_a_shorter_one_changes_no_training(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(random.Random(0).randbytes(200_000))
    sizes = {"window": 64, "batch": 1, "validate_every": 2, "validate_bytes": 20_000}
    panel = panels.lab("test", model="qllk-2-nano", corpus=str(path), **sizes)
    panel.advance(1)
    fingerprint = panel.run.trainer.corpus.fingerprint
    path.write_bytes(b"short")  # in place: the same file, now of five bytes
    panel.start()
    wait_steps(panel.run, 6)
    vars(panel.run.trainer.corpus).pop("fingerprint", None)  # so that it is computed again
    assert panel.run.trainer.corpus.fingerprint == fingerprint
    assert panel.run.state == "running"


def test_an_invalid_rate_of_a_loaded_run_is_refused_and_the_run_stays(panel, saved):
    load(panel, saved)
    panel.controls["lr"].value = -1
    panel.buttons["start"].click()
    says(panel, "notes", "learning rate must be a number above 0")
    assert (panel.run.state, step_of(panel.run)) == ("idle", 4)


def test_a_batch_that_does_not_fit_in_memory_is_refused_and_training_goes_on(panel):
    panel.start()
    wait_steps(panel.run, 1)
    panel.controls["batch"].value = 10**9
    says(panel, "notes", "batch 1000000000 was refused")
    wait_steps(panel.run, 2)
    assert panel.run.trainer.batch == 1


@pytest.fixture
def small_presets(monkeypatch):
    monkeypatch.setattr("qllk.lab.live.run._PREVIEW_IDS", 8)
    for name in ("qllk-2", "qllk-2-local", "bert-nano"):
        monkeypatch.setitem(PRESETS, f"{name} small", TINY[name])


@pytest.mark.slow
@pytest.mark.usefixtures("small_presets")
def test_a_panel_that_is_made_fifty_times_leaves_one_trainer():
    sizes = {"window": 64, "batch": 1, "validate_bytes": 128}
    made = []
    for _ in range(50):
        panel = panels.lab("test", model="qllk-2 small", corpus=CORPUS.source, **sizes)
        panel.advance(1)
        made.append((panel, weakref.ref(panel.run.trainer)))  # as a notebook's Out keeps them
    wait_for(lambda: not threads())
    gc.collect()
    assert [trainer() is not None for _, trainer in made] == [False] * 49 + [True]
    assert "qllk-2 small on copy" in made[0][0].outputs["status"].value


def test_what_cannot_be_drawn_is_told_and_drawing_goes_on(panel, monkeypatch):
    def broken(*_):
        raise ValueError("no <b>picture</b>")

    with monkeypatch.context() as context:
        context.setattr(panels, "render", broken)
        panel.start()
        says(panel, "status", "this cannot be shown: ValueError: no &lt;b&gt;picture")
    says(panel, "status", ">running<")


@pytest.mark.parametrize(
    "condition",
    [lambda: torch.set_grad_enabled(False), torch.no_grad, torch.inference_mode],
    ids=["gradients are off", "no_grad", "inference mode"],
)
def test_the_lab_opens_and_trains_whatever_an_earlier_cell_has_set(condition):
    with condition():
        panel = panels.lab("test", model="qllk-3-nano", corpus=CORPUS.source, window=64, batch=1)
        panel.advance(2)
        assert panel.controls["device"].options[-1][1] == "cpu"
        panel.start()
        wait_steps(panel.run, 2)
    assert "q-bad" not in panel.outputs["notes"].value


# ---------------------------------------------------------------- any order, any thread


_TAGS = [
    "div",
    "span",
    "b",
    "i",
    "small",
    "pre",
    "ul",
    "li",
    "style",
    "svg",
    "text",
    "line",
    "polyline",
    "polygon",
    "circle",
    "rect",
]


class Page(HTMLParser):
    """Reads a page, and refuses what the panel itself never writes."""

    def handle_starttag(self, tag, attributes):
        assert tag in _TAGS
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        assert not [c for c in data if not (c.isprintable() or c in "\n\xa0")]


NASTY = [
    "<img src=x onerror=alert(1)>",
    "\x1b[2J",
    "a&b'\"",
    "~no-such-user/x",
    "",
    "/dev/null/x",
    "\0",
]


def press_at_random(panel, chance, presses, paths):
    """Use controls and buttons at random, as a person would, in an order that nobody would."""
    controls = {
        "model": lambda: chance.choice(["qllk-2 small", "qllk-2-local small", "bert-nano small"]),
        "corpus": lambda: chance.choice([panels._FILE, "task:noise", "task:copy"]),
        "file": lambda: chance.choice([CORPUS.source, CORPUS.source, *NASTY]),
        "precision": lambda: chance.choice(["float32", "bfloat16"]),
        "lr": lambda: chance.choice([1e-3, 1e-4, 1e30, -1.0, math.nan]),
        "batch": lambda: chance.choice([1, 2, 0, -3, 10**9]),
        "path": lambda: chance.choice([*paths, *NASTY]),
    }
    for _ in range(presses):
        if chance.random() < 0.5:
            name = chance.choice([*controls])
            panel.controls[name].value = controls[name]()
        else:
            panel.buttons[chance.choice([*panel.buttons])].click()
        if chance.random() < 0.2:
            time.sleep(0.02)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("small_presets")
@pytest.mark.parametrize("seed", range(110))
def test_controls_used_in_any_order_by_four_threads_at_once_leave_a_panel_that_works(
    seed, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "free_bytes", lambda device: 1 << 33)
    sizes = {"window": 64, "validate_bytes": 128, "steps": 10**6}
    panel = panels.lab("test", model="qllk-2 small", corpus=CORPUS.source, batch=1, **sizes)
    hands = 1 if seed % 2 else 4
    paths = [tmp_path / "one", tmp_path / "two"]
    pressing = [
        threading.Thread(
            target=press_at_random,
            args=(panel, random.Random(f"{seed} {hand}"), 40 // hands, [*map(str, paths)]),
        )
        for hand in range(hands)
    ]
    for thread in pressing:
        thread.start()
    for thread in pressing:
        thread.join(300)
        assert not thread.is_alive(), "hangs"
    panel.draw()
    for output in panel.outputs.values():
        Page().feed(output.value)

    chosen = {"corpus": panels._FILE, "file": CORPUS.source, "lr": 1e-3, "batch": 1}
    for name, value in chosen.items():
        panel.controls[name].value = value
    panel.stop()
    wait_for(lambda: panel.run.state in ("stopped", "done", "failed"))
    panel.start()
    assert trains_what_it_shows(panel)
    assert [run for run in [panel.run] if run.state == "running"]
    panel.run.stop(wait=60)


def test_making_the_panel_again_stops_its_old_run(panel):
    panel.start()
    wait_steps(panel.run, 2)
    again = panels.lab("test", model="qllk-2-nano", corpus=CORPUS.source)
    assert panel.run.state == "stopped"
    assert again.run.state == "idle"


def test_an_unchanged_panel_is_not_drawn_again(panel, monkeypatch):
    panel.advance(2)
    monkeypatch.setattr(panels, "render", lambda *_: pytest.fail("drawn again"))
    panel.draw()


def test_an_interrupt_of_advance_is_noted_and_the_run_can_go_on(panel, monkeypatch):
    panel.advance(1)
    monkeypatch.setattr(panel.run, "advance", lambda n: signal.raise_signal(signal.SIGINT))
    panel.advance(5)
    says(panel, "notes", "interrupted")
    assert panel.run.state == "idle"


def test_fast_sizes_are_chosen_by_the_environment(monkeypatch):
    monkeypatch.setenv("QLLK_FAST", "1")
    fast = panels.lab("fast")
    monkeypatch.delenv("QLLK_FAST")
    full = panels.lab("full")
    assert (fast.controls["model"].value, fast._recipe.window) == ("qllk-3-nano", 256)
    assert (full.controls["model"].value, full._recipe.window) == ("qllk-3", 2048)


# ---------------------------------------------------------------- a model of one's own


def make_own():
    torch.manual_seed(0)
    return Model(8, (2, "word"), (3,), 64, 64)


@pytest.fixture
def own():
    sizes = {"window": 64, "batch": 1, "validate_every": 5, "validate_bytes": 256}
    panel = panels.lab("test", model=make_own, corpus=CORPUS.source, **sizes)
    yield panel
    panel.run.stop(wait=60)


def test_a_module_of_ones_own_trains_writes_switches_and_is_replayed_from_its_log(own):
    assert own.controls["model"].label == "your own model"
    own.advance(3)
    own.controls["precision"].value = "bfloat16"
    own.switch()
    own.run.send("lr", 2e-3)
    own.advance(3)
    says(own, "status", "Model on copy")
    says(own, "facts", "cpu bfloat16")
    assert "nothing yet" not in own.outputs["sample"].value
    live = own.run.trainer
    replay = Trainer(make_own(), CORPUS, live.recipe)
    replay.replay(live.log)
    for _ in range(6):
        next(replay)
    assert [name for _, name, _ in live.log] == ["precision", "lr"]
    for a, b in zip(replay.model.parameters(), live.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_reset_makes_the_own_model_anew_and_a_preset_can_be_chosen_instead(own):
    own.advance(2)
    trained = own.run.trainer.model
    own.reset()
    own.advance(1)
    assert own.run.trainer.model is not trained
    own.controls["model"].value = "qllk-2-nano"
    own.start()
    says(own, "status", "qllk-2-nano on copy")


def test_a_saved_run_of_ones_own_model_says_what_loading_it_needs(own, tmp_path):
    own.controls["path"].value = str(tmp_path / "saved")
    own.advance(1)
    own.save()
    says(own, "notes", "saved to")
    own.load()
    says(own, "notes", "the run of a module without a Spec")


def test_a_module_itself_is_refused_since_a_second_run_would_continue_from_its_weights():
    with pytest.raises(ValueError, match=r"needs a function that makes a Model.*lab\(model="):
        panels.lab("test", model=make_own())


def test_earlier_runs_stand_behind_the_present_one(panel):
    panel.advance(6)
    panel.controls["model"].value = "gpt-nano"
    panel.reset()
    panel.advance(6)
    assert "the run before: model qllk-2-nano → gpt-nano" in panel.outputs["status"].value
    assert "at step 5 it had" in panel.outputs["status"].value
    assert "earlier" in panel.outputs["loss"].value
    for _ in range(5):
        panel.reset()
        panel.advance(1)
    assert len(panel._earlier) == 3


def test_a_design_of_ones_own_is_chosen_by_its_spec_or_its_file(tmp_path):
    spec = TINY["gpt-nano"]
    (tmp_path / "mine.json").write_text(spec.to_json())
    sizes = {"window": 64, "batch": 1, "validate_bytes": 256}
    for model in (spec, str(tmp_path / "mine.json")):
        panel = panels.lab("test", model=model, corpus=CORPUS.source, **sizes)
        panel.advance(2)
        assert panel.run.trainer.spec == spec
        assert panel.controls["model"].options[0][0] == "a spec of your own"
        panel.run.stop(wait=60)
    with pytest.raises(ValueError, match="unknown preset 'gtp'"):
        panels.lab("test", model="gtp")
