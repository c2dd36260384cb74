"""Lesson 10: what its widget writes and draws, and what it takes out of a state."""

import itertools

import pytest
import torch
from torch.utils._pytree import tree_leaves

from qllk import build
from qllk.lab.keep import keep_weights
from qllk.lab.lessons import exercises, writing
from qllk.lab.lessons.assembly import weights_for_model
from qllk.lab.writer import load_writer
from qllk.model.sample import generate, greedy, sampler
from qllk.probes.inside import state_bytes

PROMPT = b"import "


def played(**settings):
    """The last page of the widget."""
    *_, last = writing.play(**settings)
    return last


@pytest.fixture(scope="module")
def model():
    return load_writer()


@pytest.mark.parametrize("pick", [lambda: greedy, lambda: sampler(0.8, top_p=0.9, seed=0)])
def test_the_pages_show_what_generate_writes(model, pick):
    *_, (note, *_) = writing.pages(model, PROMPT, pick(), 50)
    assert note.lines == writing.wrapped(PROMPT + generate(model, PROMPT, 50, pick()))


def test_the_sizes_drawn_are_those_of_the_states(model):
    *_, (_, sizes, _) = writing.pages(model, PROMPT, greedy, 50)
    with torch.no_grad():
        _, state = model.run(torch.zeros(1, 60, dtype=torch.long))
    assert [kib for _, kib in sizes.lines["qllk-3"]] == [state_bytes(state) / 1024] * 2
    # A key and a value of 64 channels in each of 4 layers; the last byte written is not yet read.
    per_byte = 2 * 64 * 4 * 4 / 1024
    read = [len(PROMPT) + written - 1 for written in (25, 50)]
    assert [kib for _, kib in sizes.lines["gpt"]] == [per_byte * n for n in read]


def test_a_time_is_drawn_for_every_size(model):
    *_, (_, sizes, times) = writing.pages(model, PROMPT, greedy, 75)
    for name in ("qllk-3", "gpt"):
        assert (
            [n for n, _ in times.lines[name]] == [n for n, _ in sizes.lines[name]] == [25, 50, 75]
        )
        assert all(milliseconds > 0 for _, milliseconds in times.lines[name])


def test_every_setting_changes_the_text():
    base = {"prompt": "count", "temperature": 1.0, "top_p": 0.9, "length": 50}
    changes = {"prompt": "def ", "temperature": 2.5, "top_p": 0.3, "length": 75}
    changes |= {"drawer": False, "recall": False}
    texts = {tuple(played(**base)[0].lines)}
    texts |= {tuple(played(**base | {name: value})[0].lines) for name, value in changes.items()}
    assert len(texts) == 1 + len(changes)


@pytest.mark.parametrize("prompt", ["", "\n", "é <b>", "a\tb" * 50])
def test_any_prompt_will_do(prompt):
    assert played(prompt=prompt, length=50)[1].lines


def test_the_ends_of_all_controls_work_together():
    controls = writing.play.widget().controls
    heats, shares = (
        [control.options[i] for i in (0, -1)]
        for control in (controls["temperature"], controls["top_p"])
    )
    for heat, share in itertools.product(heats, shares):
        assert len(played(temperature=heat, top_p=share, length=50)) == 3


def test_text_is_wrapped_and_odd_bytes_become_dots():
    assert writing.wrapped(b"abcde\n\nx\xff\x00y", columns=3) == ["abc", "de", "", "x··", "y"]
    assert writing.wrapped(b"") == []


def test_a_state_is_split_without_loss(model):
    ids = torch.randint(97, 100, (2, 30), generator=torch.Generator().manual_seed(0))
    _, state = model.run(ids)
    parts = writing.split_state(state)
    assert state_bytes(tuple(parts.values())) == state_bytes(state)
    whole = writing.start_state(model, ids)._replace(t=state.t)
    for part in parts:
        whole = writing.exchange(part, whole, state)
    with torch.no_grad():
        torch.testing.assert_close(model.run(ids, whole)[0], model.run(ids, state)[0])


@pytest.mark.parametrize(
    "part", ["inputs of convolutions", "contexts so far", "rows of the recall"]
)
def test_an_exchange_changes_one_part(model, part):
    ids = torch.randint(97, 100, (1, 30), generator=torch.Generator().manual_seed(0))
    _, state = model.run(ids)
    start = writing.start_state(model, ids)
    before, after = state, writing.exchange(part, state, start)
    before, after = (
        {
            name: list(map(id, tree_leaves(value)))
            for name, value in writing.split_state(one).items()
        }
        for one in (before, after)
    )
    assert [name for name in before if before[name] != after[name]] == [part]
    with torch.no_grad():
        assert not model.run(ids, writing.exchange(part, state, start))[0].equal(
            model.run(ids, state)[0]
        )


def test_the_start_state_is_that_of_a_new_text(model):
    ids = torch.tensor([list(b"abra abra")])
    with torch.no_grad():
        logits, _ = model.run(ids, writing.start_state(model, ids))
        torch.testing.assert_close(logits, model.run(ids)[0], rtol=0, atol=0)


def test_costs_are_printed_by_span_with_half_their_range(capsys):
    costs = torch.zeros(2, 128)
    costs[0, 0], costs[:, 32:] = 3.0, 0.25
    writing.print_costs({"a part": costs})
    head, row = capsys.readouterr().out.splitlines()
    assert head.split("  ")[-1].strip() == "33 to 128"
    assert " ".join(row.split()) == "a part 1.50 ± 1.50 0.00 ± 0.00 0.00 ± 0.00 0.25 ± 0.00"


def test_the_weights_of_lesson_09_write_if_there_are_some(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_HOME", str(tmp_path))
    assert writing.own_model() is None
    library = build("qllk-3-nano", seed=3)
    spec = library.spec
    sizes = (spec.d_model, spec.ngrams.contexts, spec.recall.contexts, 4096, 4096)
    ours = exercises.assembly.Model(*sizes)
    ours.load_state_dict(weights_for_model(library))
    keep_weights(ours)
    ids = torch.tensor([list(b"abra")])
    torch.testing.assert_close(writing.own_model()(ids), library(ids))


def test_weights_of_another_model_stop_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QLLK_HOME", str(tmp_path))
    keep_weights(torch.nn.Linear(2, 2))
    assert writing.own_model() is None
    assert "your weights of lesson 09 cannot be used" in capsys.readouterr().out


def test_the_two_definitions_of_a_stream_agree():
    toy = exercises.writing.toy(torch.Generator().manual_seed(3), 31, 9)
    settings = ([1, 2], 40, exercises.writing.likeliest)
    ids = exercises.writing.stream(toy, *settings)
    assert ids.tolist() == exercises.writing.stream_by_rereading(toy, *settings).tolist()
    assert len(set(ids.tolist())) > 5, "or a mistake could go unseen"
