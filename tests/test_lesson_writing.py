"""Lesson 10: what its widget writes and draws, and that its one trainer goes on where it stands."""

import itertools

import numpy as np
import pytest
import torch

from qllk import Recipe, Trainer, build
from qllk.lab.lessons import exercises, writing
from qllk.model.sample import generate, greedy, sampler
from qllk.probes.inside import state_bytes
from qllk.study.figures import Note
from qllk.text.corpora import Corpus

PROMPT = b"import "


def played(**settings):
    """The last page of the widget."""
    *_, last = writing.play(**settings)
    return last


@pytest.fixture
def short_training(monkeypatch):
    text = np.frombuffer(b"abracadabra abra " * 40, np.uint8)
    run = Trainer("qllk-2-nano", Corpus("a", text, text), Recipe(steps=6, batch=2, window=16))
    monkeypatch.setattr(writing, "trainer", lambda: run)
    return run


@pytest.fixture(scope="module")
def model():
    return build("qllk-2-nano", seed=0).eval()


@pytest.mark.parametrize("pick", [lambda: greedy, lambda: sampler(0.8, top_p=0.9, seed=0)])
def test_the_pages_show_what_generate_writes(model, pick):
    *_, (note, *_) = writing.pages(model, PROMPT, pick(), 50)
    assert note.lines == writing.wrapped(PROMPT + generate(model, PROMPT, 50, pick()))


def test_the_sizes_drawn_are_those_of_the_states(model):
    *_, (_, sizes, _) = writing.pages(model, PROMPT, greedy, 50)
    with torch.no_grad():
        _, state = model.run(torch.zeros(1, 60, dtype=torch.long))
    assert [kib for _, kib in sizes.lines["kernel"]] == [state_bytes(state) / 1024] * 2
    # A key and a value of 64 channels in each of 4 layers; the last byte written is not yet read.
    per_byte = 2 * 64 * 4 * 4 / 1024
    read = [len(PROMPT) + written - 1 for written in (25, 50)]
    assert [kib for _, kib in sizes.lines["attention"]] == [per_byte * n for n in read]


def test_a_time_is_drawn_for_every_size(model):
    *_, (_, sizes, times) = writing.pages(model, PROMPT, greedy, 75)
    for name in ("kernel", "attention"):
        assert (
            [n for n, _ in times.lines[name]] == [n for n, _ in sizes.lines[name]] == [25, 50, 75]
        )
        assert all(milliseconds > 0 for _, milliseconds in times.lines[name])


def test_training_cut_off_goes_on_with_the_next_run(short_training):
    first = next(writing.play())
    assert isinstance(first, Note)
    assert short_training.step == 1
    played(length=50)
    assert short_training.step == 6
    assert not isinstance(next(writing.play(length=50)), Note), "it is not trained again"


def test_every_setting_changes_the_text(short_training):
    base = {"prompt": "import ", "temperature": 0.8, "top_p": 0.9, "length": 50}
    changes = {"prompt": "def ", "temperature": 0, "top_p": 0.3, "length": 75}
    texts = {tuple(played(**base)[0].lines)}
    texts |= {tuple(played(**base | {name: value})[0].lines) for name, value in changes.items()}
    assert len(texts) == 1 + len(changes)


@pytest.mark.parametrize("prompt", ["", "\n", "é <b>", "a\tb" * 50])
def test_any_prompt_will_do(short_training, prompt):
    assert played(prompt=prompt, length=50)[1].lines


def test_the_ends_of_all_controls_work_together(short_training):
    controls = writing.play.widget().controls
    heats, shares = (
        [control.options[i] for i in (0, -1)]
        for control in (controls["temperature"], controls["top_p"])
    )
    for heat, share in itertools.product(heats, shares):
        assert len(played(temperature=heat, top_p=share, length=50)) == 3
    for length in controls["length"].options:
        assert length % writing.PIECE == 0, "the last page is drawn at the last byte"


def test_text_is_wrapped_and_odd_bytes_become_dots():
    assert writing.wrapped(b"abcde\n\nx\xff\x00y", columns=3) == ["abc", "de", "", "x··", "y"]
    assert writing.wrapped(b"") == []


def test_the_two_definitions_of_a_stream_agree():
    toy = exercises.writing.toy(torch.Generator().manual_seed(3), 31, 9)
    ids = exercises.writing.stream(toy, [1, 2], 40)
    assert ids.tolist() == exercises.writing.stream_by_rereading(toy, [1, 2], 40).tolist()
    assert len(set(ids.tolist())) > 5, "or a mistake could go unseen"
