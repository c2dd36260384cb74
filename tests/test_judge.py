"""The scores of a run, against the losses that the trainer itself measures."""

import math

import pytest
from helpers import SPEC, TINY

import qllk
from qllk.study import judge
from qllk.training.questions import fit_vocabulary

TEXT = "task:markov:20000:0"


def trained(spec, text=TEXT, window=64):
    text = qllk.corpus(text)
    recipe = qllk.Recipe(steps=30, batch=2, window=window)
    trainer = qllk.Trainer(fit_vocabulary(spec, window, text.tokenizer), text, recipe)
    for _ in trainer:
        pass
    return trainer


@pytest.fixture(autouse=True)
def write_little(monkeypatch):
    monkeypatch.setattr(judge, "_SAMPLE", 50)


def test_a_decoder_is_judged_in_windows_as_a_stream_and_by_what_it_writes():
    trainer = trained(SPEC)
    found = judge.judge(trainer)
    size = len(trainer.corpus.valid)
    assert list(found["windows"]) == ["1024", "4096"]
    nats = {n: facts["nats_per_byte"] for n, facts in found["windows"].items()}
    assert nats["1024"] == pytest.approx(trainer.validate(size, 1024), abs=1e-6)
    stream = found["stream"]
    assert found["longest"] is None
    assert stream["targets"] == size - 1
    assert stream["perplexity"] == pytest.approx(math.exp(stream["nats_per_byte"]))
    assert 0 < stream["accuracy"]["1"] < stream["accuracy"]["5"] <= 1
    assert set(found["distinct"]) == {"written", "held out"}
    assert all(0 < share <= 1 for shares in found["distinct"].values() for share in shares.values())
    assert judge.judge(trainer) == found
    text = judge.format_judgement(found)
    assert "| as a stream |" in text
    assert "| in windows of 4,096 |" in text
    assert "different n-grams in what is held out" in text


def test_a_model_whose_state_grows_streams_up_to_a_length_that_is_told():
    found = judge.judge(trained(TINY["gpt2-nano"]))
    assert list(found["windows"]) == ["80"]
    assert found["longest"] == 80
    assert "as a stream, cut every 80 ids" in judge.format_judgement(found)


@pytest.mark.parametrize(
    ("preset", "unit"), [("bert-nano", "hidden bytes"), ("t5-nano", "lost bytes")]
)
def test_other_families_are_judged_by_the_ids_that_were_taken_away(preset, unit):
    trainer = trained(TINY[preset])
    found = judge.judge(trainer)
    assert found["unit"] == unit
    ((window, facts),) = found["windows"].items()
    assert int(window) == trainer.window
    assert facts["nats_per_byte"] == pytest.approx(
        trainer.validate(len(trainer.corpus.valid)), abs=1e-5
    )
    assert 0 < facts["targets"] < len(trainer.corpus.valid) / 2
    assert found["stream"] is found["distinct"] is None


def test_ids_of_several_bytes_count_per_byte_and_per_id(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog sat on the cat\n" * 400)
    trainer = trained(SPEC, f"bpe-270:{path}", window=32)
    found = judge.judge(trainer)
    assert found["unit"] == "ids"
    facts = found["stream"]
    per_id = facts["nats_per_byte"] * trainer.corpus.bytes_per_id
    assert facts["perplexity"] == pytest.approx(math.exp(per_id))
