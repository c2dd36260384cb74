"""Lesson 09: the picture of a run, and the lab around a model of one's own."""

from types import SimpleNamespace

import torch

from qllk.lab.lessons import training
from qllk.lab.lessons.exercises.assembly import Model
from qllk.probes.evaluate import LN2


def record(step, bits, valid=None, precision="float32"):
    return SimpleNamespace(
        step=step,
        bits_per_byte=bits,
        valid_nats=valid,
        device="cpu",
        precision=precision,
    )


def test_a_curve_is_the_mean_of_neighbouring_steps_and_starts_with_the_first():
    records = [record(step, float(step), 2 * LN2 if step == 40 else None) for step in range(1, 41)]
    lines = training.progress(records, {}, density=2).lines
    assert list(lines) == ["training", "held out"]
    assert lines["training"][0] == (1, 1.0)
    assert lines["training"][-1] == (40, sum(range(32, 41)) / 9)
    assert lines["held out"] == [(40, 2.0)]


def test_a_run_that_was_moved_has_a_line_for_each_place():
    records = [
        record(step, 1.0, precision="bfloat16" if step > 3 else "float32") for step in (1, 3, 4)
    ]
    lines = training.progress(records, {"unigram": 4.6}).lines
    assert lines == {"cpu float32": [(1, 1.0), (3, 1.0)], "cpu bfloat16": [(4, 1.0)]}


def test_the_widget_trains_the_model_that_it_is_given():
    panel = training.widget(lambda: Model(8, (2, "word"), (3,), 64, 64))
    panel.advance(1)
    assert panel.run.trainer.name == "Model"
    assert panel.run.trainer.recipe.batch == 1
    assert torch.isfinite(torch.tensor(panel.run.snapshot().record.nats))


def test_the_model_of_lesson_08_makes_no_tensor_on_another_device():
    model = Model(8, (2, "word"), (3,), 64, 64).to("meta")
    assert model(torch.zeros(1, 9, dtype=torch.long, device="meta")).shape == (1, 9, 256)
