"""The trained model that ships: its file, what it says of itself, and that it needs its memory."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from qllk import Recipe, Trainer, build
from qllk.lab import writer
from qllk.lab.lessons.assembly import weights_for_model
from qllk.lab.lessons.exercises.assembly import Model
from qllk.model.families import eval_mode
from qllk.probes.evaluate import iterate_stream, mean_loss, stream_losses
from qllk.text.corpora import Corpus, corpus
from qllk.text.objectives import token_losses

TINY = writer._SPEC.but(d_model=8, layers=1)


@pytest.fixture(scope="module")
def model():
    return writer.load_writer()


@pytest.fixture(scope="module")
def text():
    return corpus("stdlib")


def trained():
    """A tiny model after a few steps, so that some rows of its tables are filled."""
    text = np.frombuffer(b"abracadabra abra " * 40, np.uint8)
    text = Corpus("a", text, text)
    recipe = Recipe(steps=3, batch=2, window=16)
    trainer = Trainer(TINY, text, recipe)
    list(trainer)
    return trainer.model, text, recipe


def test_the_file_is_small_and_holds_no_code():
    assert writer.FILE.stat().st_size <= 2_000_000
    with safe_open(writer.FILE, framework="pt") as file:
        assert set(file.metadata()) == {"facts"}


def test_it_is_installed_with_the_package():
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    data = tomllib.loads(project.read_text())["tool"]["setuptools"]["package-data"]
    assert writer.FILE.parent == Path(writer.__file__).parent
    assert f"*{writer.FILE.suffix}" in data["*"]


def test_it_says_how_it_was_made():
    facts = writer.read_facts()
    assert facts["spec"] == json.loads(writer._SPEC.to_json())
    assert Recipe.from_dict(facts["recipe"]) == writer._RECIPE
    assert facts["corpus"] == "stdlib"
    assert set(facts["versions"]) == {"qllk", "torch"}


def test_its_stated_loss_is_its_loss(model, text):
    nats = mean_loss(*stream_losses(model, text.valid[: writer.HELD_OUT]))
    facts = writer.read_facts()
    same_text = text.fingerprint == facts["fingerprint"]  # another Python has other sources
    assert nats == pytest.approx(facts["held_out_nats"], abs=1e-3 if same_text else 0.3)
    assert nats < 1.3


def test_each_call_loads_a_model_of_its_own(model):
    other = writer.load_writer()
    torch.nn.init.zeros_(other.head.weight)
    assert not other.training
    assert model.head.weight.any()
    assert writer.load_writer().head.weight.any()


def test_the_class_of_lesson_08_gives_its_logits(model, text):
    spec = model.spec
    contexts = (spec.ngrams.contexts, spec.recall.contexts)
    sizes = (spec.d_model, *contexts, spec.ngrams.rows, spec.recall.addresses, spec.layers)
    ours, exact = Model(*sizes).double(), writer.load_writer().double()
    ours.load_state_dict(weights_for_model(exact))
    ids = torch.from_numpy(text.valid[:300].astype(np.int64))[None]
    torch.testing.assert_close(ours(ids), exact(ids), rtol=0, atol=1e-9)


def test_without_its_memory_it_pays_more_than_a_tenth_of_a_nat(model, text):
    read = text.valid[: 1 << 14]
    carried = torch.cat([token_losses(*one)[0] for one in iterate_stream(model, read)])
    pieces = iterate_stream(model, read, longest=256)  # the state is dropped every 256 bytes
    dropped = torch.cat([token_losses(*one)[0] for one in pieces])
    assert dropped.mean() > carried.mean() + 0.1


def test_a_packed_table_is_as_near_as_int8_allows():
    model, _, _ = trained()
    packed = writer.pack(model)
    weights, name = writer.unpack(packed), "ngrams.table.weight"
    table = model.state_dict()[name]
    assert 0 < len(packed[name]) < len(table), "rows that nobody read are not stored"
    assert weights.keys() == model.state_dict().keys()
    error, most = (weights[name] - table).abs(), table.abs().amax(dim=1, keepdim=True)
    assert (error <= most / 127 * 0.51 + 1e-3).all()
    torch.testing.assert_close(weights["head.weight"], model.head.weight, rtol=1e-3, atol=1e-6)


def test_what_is_written_is_what_is_read(tmp_path, monkeypatch):
    model, text, recipe = trained()
    path = tmp_path / "small.safetensors"
    facts = writer.write_model(model, text, recipe, path)
    monkeypatch.setattr(writer, "FILE", path)
    writer._read.cache_clear()
    try:
        assert writer.read_facts() == json.loads(json.dumps(facts))
        read, ids = writer.load_writer(), torch.from_numpy(text.valid[:40].copy()).long()[None]
        with eval_mode(model):
            assert (read(ids) - model(ids)).abs().max() < 0.01
        assert (read(ids) - build(TINY, seed=0)(ids)).abs().max() > 0.01
    finally:
        writer._read.cache_clear()


def test_the_command_trains_and_writes(tmp_path, monkeypatch, capsys):
    text = np.frombuffer(b"abracadabra abra " * 40, np.uint8)
    monkeypatch.setattr(writer, "corpus", lambda name: Corpus(name, text, text))
    monkeypatch.setattr(writer, "_SPEC", TINY)
    monkeypatch.setattr(writer, "_RECIPE", Recipe(steps=3, batch=2, window=16))
    monkeypatch.setattr(writer, "FILE", tmp_path / "small.safetensors")
    writer.main()
    assert "small.safetensors: " in capsys.readouterr().out
    assert (tmp_path / "small.safetensors").stat().st_size > 0
