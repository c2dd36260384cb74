"""The lab without a browser: the run around a trainer, its pictures, its panel."""

import itertools
import math
import random
import signal
import threading
import time
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from helpers import TINY

from qllk.lab.live import panels, run
from qllk.lab.live.history import History, Point
from qllk.lab.live.run import Note, Run
from qllk.lab.live.view import view
from qllk.lab.pictures import svg
from qllk.presets import PRESETS
from qllk.study.axes import Scale, short
from qllk.text.corpora import task
from qllk.training import devices, previews
from qllk.training.previews import Preview
from qllk.training.recipe import Recipe
from qllk.training.trainer import Diverged, Trainer

CORPUS = task("copy", 4096)
RECIPE = Recipe(steps=100_000, window=32, batch=2, validate_every=7, validate_bytes=64)
ORDERS = ("start", "pause", "resume", "stop")


class Recorder(Trainer):
    """A trainer that remembers every loss."""

    def __init__(self, *arguments, **options):
        self.losses = {}
        super().__init__(*arguments, **options)

    def __next__(self):
        record = super().__next__()
        self.losses[record.step] = record.nats
        return record


def make(**changes):
    spec = TINY["qllk-2"].but(dropout=0.1)
    return Recorder(spec, CORPUS, Recipe(**{**vars(RECIPE), **changes}))


def wait_for(condition, seconds=60):
    """Poll: the machine may be busy."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return found


def step_of(some):
    return some.trainer.step if some.trainer else 0


def wait_steps(some, more):
    goal = step_of(some) + more
    wait_for(lambda: step_of(some) >= goal)


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("qllk")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    wait_for(lambda: not threads())
    yield
    for some in list(run._runs.values()):
        some.stop()
    wait_for(lambda: not threads())


# ---------------------------------------------------------------- the run


def test_a_run_goes_from_idle_to_running_to_paused_to_stopped():
    some = Run(make)
    assert (some.state, some.alive) == ("idle", False)
    some.start()
    wait_steps(some, 3)
    assert (some.state, some.alive) == ("running", True)
    some.pause()
    with some._stepping:
        at_rest = step_of(some)
    assert some.state == "paused"
    some.resume()
    wait_steps(some, 3)
    assert step_of(some) > at_rest
    some.stop(wait=60)
    assert (some.state, some.alive) == ("stopped", False)


def test_a_paused_run_takes_no_step():
    some = Run(make)
    some.start()
    wait_steps(some, 1)
    some.pause()
    some.save("/dev/null/nowhere")  # a job that is done while paused, after the last step
    wait_for(lambda: some.snapshot().notes)
    at_rest = step_of(some)
    some.save("/dev/null/nowhere")
    wait_for(lambda: len(some.snapshot().notes) == 2)
    assert step_of(some) == at_rest


def test_a_run_is_done_when_its_budget_is_spent():
    some = Run(lambda: make(steps=5))
    some.start()
    assert some.wait(60) == "done"
    assert step_of(some) == 5


@pytest.mark.parametrize("seed", range(100))
def test_any_order_of_orders_leaves_a_lawful_state_and_no_thread(seed):
    chance = random.Random(seed)
    some, expected = Run(make), "idle"
    for order in chance.choices(ORDERS, k=12):
        getattr(some, order)()
        expected = run._TRANSITIONS[order].get(expected, expected)
        assert some.state == expected
        if chance.random() < 0.2:
            time.sleep(0.01)
    some.stop(wait=60)
    assert (some.state, some.alive) == ("stopped", False)


def test_an_error_is_kept_noted_and_raised_again_by_wait():
    def broken():
        raise ValueError("no such thing <here>")

    some = Run(broken)
    some.start()
    with pytest.raises(ValueError, match="no such thing"):
        some.wait(60)
    assert some.state == "failed"
    assert some.snapshot().notes[-1] == Note(0, "ValueError: no such thing <here>", bad=True)


def test_a_run_that_diverges_is_paused_and_goes_on_with_a_lower_rate():
    some = Run(lambda: make(lr=1e30, warmup=0.0))
    some.start()
    wait_for(lambda: some.state == "paused")
    wait_for(lambda: some.snapshot().notes)
    assert "lower learning rate" in some.snapshot().notes[-1].text
    some.send("lr", 1e-3)
    some.resume()
    wait_steps(some, 5)
    assert some.state == "running"


def test_a_new_run_of_the_same_name_stops_the_old_one_and_begins_after_it():
    old = Run(make, "same")
    old.start()
    wait_steps(old, 2)
    new = Run(make, "same")
    assert old.state == "stopped"
    new.start()
    wait_steps(new, 2)
    assert not old.alive


def test_runs_of_other_names_are_left_alone():
    one, two = Run(make, "one"), Run(make, "two")
    one.start()
    two.start()
    wait_steps(one, 2)
    wait_steps(two, 2)
    assert (one.state, two.state) == ("running", "running")


def test_advance_takes_steps_in_the_calling_thread_and_start_goes_on_from_there():
    some = Run(make)
    some.advance(4)
    assert (step_of(some), some.state, some.alive) == (4, "idle", False)
    some.start()
    wait_steps(some, 2)
    with pytest.raises(RuntimeError, match="the run is running; to advance it must be idle"):
        some.advance(1)


def test_advance_raises_what_a_step_raises():
    some = Run(lambda: make(lr=1e30, warmup=0.0))
    with pytest.raises(Diverged):
        some.advance(10)
    assert some.state == "idle"


def test_an_interrupt_never_cuts_a_step_in_half():
    some = Run(make)
    some.advance(1)
    whole = some._step

    def interrupted():
        signal.raise_signal(signal.SIGINT)
        whole()

    some._step = interrupted
    with pytest.raises(KeyboardInterrupt):
        some.advance(5)
    assert step_of(some) == 2


def test_commands_sent_before_there_is_a_trainer_act_on_the_first_step():
    some = Run(make)
    some.send("lr", 1e-4)
    some.advance(1)
    assert some.trainer.log == [[0, "lr", 1e-4]]


def test_a_refused_command_is_noted_with_its_reason_each_time():
    some = Run(make)
    some.advance(1)
    for _ in range(2):
        some.send("precision", "float8")
        some.advance(3)
    texts = [note.text for note in some.snapshot().notes if note.bad]
    assert len(texts) == 2
    assert "unknown precision 'float8'" in texts[0]


def test_a_run_that_was_changed_in_flight_is_replayed_from_its_log_bit_for_bit(tmp_path):
    live = Run(make, sample_seconds=0.01)
    live.start()
    wait_steps(live, 10)
    live.send("precision", "bfloat16")
    wait_steps(live, 10)
    live.pause()
    live.save(tmp_path / "run.safetensors")
    live.send("lr", 1e-4)
    live.resume()
    wait_steps(live, 10)
    live.send("precision", "float32")
    wait_steps(live, 10)
    live.stop(wait=60)
    names = [name for _, name, _ in live.trainer.log]
    assert names == ["precision", "lr", "precision"]
    assert live.snapshot().sample is not None

    replay = make()
    replay.replay(live.trainer.log)
    while replay.step < live.trainer.step:
        next(replay)
    assert replay.losses == live.trainer.losses
    for a, b in zip(replay.model.parameters(), live.trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_save_and_load_happen_between_steps_and_a_failure_lets_training_go_on(tmp_path):
    path = tmp_path / "run.safetensors"
    some = Run(make)
    some.start()
    wait_steps(some, 3)
    some.save(path)
    wait_for(path.exists)
    saved = step_of(some)
    some.load(tmp_path / "none")
    wait_for(lambda: any(note.bad for note in some.snapshot().notes))
    assert "no checkpoint at" in some.snapshot().notes[-1].text
    wait_steps(some, 3)
    some.pause()
    some.load(path)
    wait_for(lambda: "loaded" in some.snapshot().notes[-1].text)
    assert step_of(some) <= saved
    assert some.snapshot().train == []
    some.resume()
    wait_steps(some, 3)
    assert some.state == "running"


def test_an_idle_run_can_be_loaded_and_started(tmp_path):
    first = Run(make, "first")
    first.advance(6)
    first.save(tmp_path / "run")
    wait_for(lambda: "saved" in str(first.snapshot().notes))
    other = Run(lambda: pytest.fail("not this one"), "other")
    other.load(tmp_path / "run")
    wait_for(lambda: step_of(other) == 6)
    other.start()
    wait_steps(other, 2)


def test_a_snapshot_shows_what_really_ran_and_since_when():
    some = Run(make)
    some.advance(3)
    some.send("precision", "bfloat16")
    some.advance(18)
    now = some.snapshot()
    assert now.marks == [(1, "cpu float32"), (4, "cpu bfloat16")]
    assert [step for step, _ in now.valid] == [7, 14, 21]
    assert now.baselines["uniform"] == 8.0
    assert 0 < now.baselines["best possible"] < 8.0
    assert all([p.step for p in points] == [1, 11, 21] for points in now.states.values())


def test_a_history_keeps_spikes_and_stays_small():
    history = History(density=32)
    for step in range(1, 200_001):
        history.add(step, 1000.0 if step == 123_456 else 1.0)
    points = history.points()
    assert len(points) < 20 * 32
    assert max(point.high for point in points) == 1000.0
    assert [point.step for point in points[:32]] == list(range(1, 33))
    assert points[-1].step == 200_000


def test_a_history_that_goes_back_forgets_what_came_after():
    history = History(density=32)
    for step in [1, 2, 3, 4, 2, 3]:
        history.add(step, float(step == 4))
    assert [(point.step, point.high) for point in history.points()] == [(1, 0), (2, 0), (3, 0)]


# ---------------------------------------------------------------- pictures


FLOORS = {"uniform": 8.0, "trigram": 2.65, "bz2": 1.74, "lzma": 1.73}
CURVE = [Point(1, 8.0, 8.0, 8.0), Point(10, 4.0, 9.5, 5.0), Point(100, 2.9, 3.1, 3.0)]


def tree(text):
    return ElementTree.fromstring(text)


def texts(text):
    return [e for e in tree(text).iter() if e.tag.endswith("text")]


def test_the_loss_picture_says_its_numbers_in_words():
    picture = tree(svg.loss_curve(CURVE, [(100, 3.2)], FLOORS, [(50, "cpu bfloat16")], 1000))
    assert picture.get("role") == "img"
    assert picture.get("aria-label") == (
        "Loss after 100 steps: 3.00 bits per byte in training, 3.20 held out. Floors: uniform "
        "8.00, trigram 2.65, bz2 1.74, lzma 1.73. cpu bfloat16 from step 50."
    )
    assert (picture.get("width"), picture.get("height")) == ("516", "300")


def test_the_step_axis_is_logarithmic():
    plot = svg.Plot(500, 300, svg.steps_scale(10_000), Scale(0, 9))
    gaps = [plot.x(10 ** (e + 1)) - plot.x(10**e) for e in range(4)]
    assert max(gaps) - min(gaps) < 1e-6
    assert plot.x(10_000) == plot.width - plot.right


def test_a_spike_stays_inside_the_frame():
    plot = svg.Plot(500, 300, svg.steps_scale(100), Scale(0, 9))
    assert plot.y(1e9) == plot.y(float("nan")) == plot.y(float("inf")) == plot.top
    wild = svg.loss_curve([Point(1, 1, float("inf"), float("nan"))], [], {}, [], 10)
    assert all("nan" not in e.get("points", "") for e in tree(wild).iter())


def test_labels_never_overlap_and_stay_in_the_frame():
    chance = random.Random(0)
    for _ in range(200):
        wanted = sorted(chance.uniform(0, 200) for _ in range(chance.randint(1, 12)))
        places = svg.spread(wanted, 13, 200)
        assert all(b - a >= 13 - 1e-9 for a, b in itertools.pairwise(places))
        assert places[-1] <= 200


def test_labels_that_have_room_stay_where_they_are():
    assert svg.spread([10, 40, 90], 13, 200) == [10, 40, 90]


def test_texts_of_marks_never_overlap():
    plot = svg.Plot(500, 300, svg.steps_scale(100), Scale(0, 9))
    for steps in ([1, 2, 3, 4], [50, 51, 90, 99, 100], [100]):
        drawn = texts(f"<g>{svg.upright(plot, [(s, 'cuda:0 bfloat16') for s in steps])}</g>")
        rows = {}
        for element in drawn:
            rows.setdefault(element.get("y"), []).append(float(element.get("x")))
            assert float(element.get("x")) + 15 * svg.LETTER <= plot.width - plot.right + 0.1
        for starts in rows.values():
            starts.sort()
            assert all(b - a >= 15 * svg.LETTER for a, b in itertools.pairwise(starts))


def test_everything_from_outside_is_escaped_in_pictures():
    nasty = '<script>"&'
    loss = svg.loss_curve(CURVE, [], {nasty: 3.0}, [(5, nasty)], 100)
    states = svg.state_curves({nasty: CURVE}, 100)
    for picture in (loss, states):
        assert "<script" not in picture
        assert any(nasty in (element.text or "") for element in texts(picture))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (0.01234, "0.012"),
        (-0.5, "-0.5"),
        (1.04, "1.04"),
        (23.46, "23.5"),
        (1234.5, "1,234"),
        (786_432, "786,432"),
        (999_999_999, "1G"),
        (1_048_576, "1.05M"),
        (-2.5e12, "-2.5T"),
        (1e20, "1e20"),
        (3e-7, "3e-7"),
        (math.inf, "inf"),
    ],
)
def test_a_number_is_said_in_few_letters(value, words):
    assert short(value) == words


def test_states_that_are_zero_or_not_finite_are_left_out():
    points = [Point(1, 0, 0, 0.0), Point(2, 1, 1, float("inf")), Point(3, 2, 2, 2.0)]
    picture = svg.state_curves({"byte 1 conv": points, "empty": points[:1]}, 100)
    assert tree(picture).get("aria-label") == "State rms per layer: byte 1 conv 2."
    assert svg.state_curves({}, 100).count("<polyline") == 0


# ---------------------------------------------------------------- the panel


def snapshot(**changes):
    return Run(make, f"snapshot {random.random()}").snapshot()._replace(**changes)


def test_a_view_is_drawn_from_plain_data_and_escaped():
    nasty = "<img src=x onerror=alert(1)>"
    now = snapshot(
        model=nasty,
        corpus=nasty,
        doing=nasty,
        sample=(3, Preview("it writes", "import ", f"{nasty}\x00\x1b\ufffd\tend")),
        notes=[Note(1, nasty, bad=True)],
        marks=[(1, nasty)],
        baselines={nasty: 2.0},
    )
    frame = view(now, 100)
    assert not any("<img" in part for part in frame[:-1])
    assert "···    end" in frame.sample
    assert "q-bad" in frame.notes


@pytest.mark.parametrize(
    ("state", "pause", "enabled"),
    [
        ("idle", "Pause", {"start", "reset", "load"}),
        ("running", "Pause", {"pause", "stop", "switch", "reset", "load"}),
        ("paused", "Resume", {"pause", "stop", "switch", "reset", "load"}),
        ("done", "Pause", {"start", "reset", "load"}),
    ],
)
def test_only_buttons_that_make_sense_are_enabled(state, pause, enabled):
    frame = view(snapshot(state=state), 100)
    assert (frame.pause, frame.enabled) == (pause, enabled)


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
    offered = set(panel.controls["model"].options)
    assert offered == set(PRESETS)
    assert "noise (task)" in dict(panels.corpora())
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
    assert "q-bad" not in panel.outputs["notes"].value


def test_a_preset_that_cannot_be_trained_here_says_why(monkeypatch):
    monkeypatch.setattr(devices, "memory_bytes", lambda device: 1 << 33)
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

    monkeypatch.setattr(previews, "generate", broken)
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
    panel.controls["corpus"].value = panels.FILE
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


def test_making_the_panel_again_stops_its_old_run(panel):
    panel.start()
    wait_steps(panel.run, 2)
    again = panels.lab("test", model="qllk-2-nano", corpus=CORPUS.source)
    assert panel.run.state == "stopped"
    assert again.run.state == "idle"


def test_an_unchanged_panel_is_not_drawn_again(panel, monkeypatch):
    panel.advance(2)
    monkeypatch.setattr(panels, "view", lambda *_: pytest.fail("drawn again"))
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
    assert (fast.controls["model"].value, fast.recipe.window) == ("qllk-2-nano", 256)
    assert (full.controls["model"].value, full.recipe.window) == ("qllk-2", 1024)
