"""Lesson 15: its text, what its rules keep, and the verdicts of its claims."""

import math

import numpy as np
import pytest
import torch

from qllk import probes
from qllk.lab import ledger
from qllk.lab.lessons import forgetting
from qllk.lab.lessons.forgetting import Row
from qllk.lab.pictures.charts import page_html
from qllk.model.families import build
from qllk.study.entries import FIELD


def verdicts(rows):
    found = ledger.judge(forgetting.CLAIMS, forgetting.Evidence(rows))
    return {finding.id: finding.verdict for finding in found}


def rows(speed, loss):
    """A race in which every model has one speed and one loss, relative to the Transformer's."""
    names = ("Linformer", "RWKV-4", "RWKV-7", "Mamba", "Mamba-2", "QLLK, leak-free")
    row = Row(2.0 * (1 + loss), None, 1000.0 * speed)
    return {"Transformer": Row(2.0, None, 1000.0), **dict.fromkeys(names, row)}


def test_each_claim_holds_in_a_race_that_keeps_it_and_not_in_one_that_does_not():
    assert set(verdicts(rows(speed=130, loss=0.0)).values()) == {"holds"}
    assert set(verdicts(rows(speed=1, loss=0.5)).values()) == {"does not hold"}
    assert set(verdicts(rows(speed=1, loss=0.0)).values()) == {"holds in part"}
    assert set(verdicts(rows(speed=130, loss=0.5)).values()) == {"holds in part"}


def test_a_name_holds_if_one_of_its_models_keeps_both_numbers():
    race = rows(speed=1, loss=0.5)
    race["Mamba-2"] = Row(2.0, None, 100_000.0)
    assert verdicts(race)["L12c"] == "holds"
    assert verdicts(race)["L12b"] == "does not hold"


def test_the_stored_race_has_every_model_of_the_field_and_some_with_tables():
    plain, tables = forgetting.field_rows(), forgetting.field_rows(ngrams=True)
    assert set(plain) == set(FIELD)
    assert (
        {"Transformer", "Linformer", "RWKV-4", "RetNet", "small qllk-3"}
        <= set(tables)
        <= set(FIELD)
    )
    for row in (*plain.values(), *tables.values()):
        assert 0 < row.nats < math.log(256)
        assert row.bytes_per_second > 0


def test_a_section_begins_with_its_mark_and_has_frequencies_of_its_own():
    text = forgetting.sections(40_000, seed=3)
    assert len(text) == 40_000
    assert text[0] == forgetting.MARK
    ends = np.flatnonzero(text == forgetting.MARK)
    assert np.diff(ends).mean() == pytest.approx(50, rel=0.1)
    assert set(text) == set(range(forgetting.MARK + 1))


def test_counting_afresh_beats_every_half_life_and_no_text_is_free():
    text = forgetting.sections(20_000, seed=4)
    best = forgetting.counting_loss(text)
    assert all(forgetting.counting_loss(text, life) > best + 0.05 for life in (2, 8, 32, 128, 4096))
    assert 1.0 < best < math.log(9)


def test_counting_by_hand():
    """One mark, then a letter that is one of eight, and again the same letter."""
    found = forgetting.counting_loss(np.array([8, 0, 0]))
    letters = -math.log(47 / 48 / 8) - math.log(47 / 48 * 1.3 / 3.4)
    assert found == pytest.approx((math.log(48) + letters) / 3)


@pytest.mark.parametrize("mixer", forgetting.LAYERS.values(), ids=forgetting.LAYERS)
def test_each_layer_of_the_race_can_be_built_and_hides_the_future(mixer):
    model = build(forgetting.one_layer(mixer), seed=0)
    assert not probes.visibility(model, 9).triu(1).any()


def test_a_mask_over_summaries_hides_too_little():
    seen = probes.visibility(forgetting.MaskedLinformer(16), 16)
    assert seen.triu(1).sum() > 60


def test_what_is_left_of_a_value():
    text = b"ab#ab"
    never = forgetting.kept_shares("never", text, 2)
    assert torch.equal(never, torch.ones(5, 5).double().tril())
    fixed = forgetting.kept_shares("at a fixed speed", text, 2)
    assert fixed[4, 0].item() == pytest.approx(0.25)
    marks = forgetting.kept_shares("at every mark", text, 2)
    assert marks[4].tolist() == pytest.approx([0, 0, 1, 1, 1], abs=1e-9)
    keys = forgetting.kept_shares("what the key finds", text, 2)
    assert keys[4].tolist() == pytest.approx([0, 0, 1, 1, 1], abs=1e-9)
    assert keys[3].tolist() == pytest.approx([0, 1, 1, 1, 0], abs=1e-9)


def test_every_control_changes_the_picture():
    pages = {page_html(forgetting.left(form)) for form in forgetting._FORMS}
    assert len(pages) == 4
    lives = {page_html(forgetting.left("at a fixed speed", life)) for life in (1, 2, 4, 8)}
    assert len(lives) == 4
    assert page_html(forgetting.left(text="abc")) not in pages


@pytest.mark.parametrize("text", ["", "a", "ä" * 5, "x" * 30])
def test_a_text_that_cannot_be_drawn_is_refused_in_words(text):
    (note,) = forgetting.left(text=text)
    assert "2 to 24 letters" in note.digest


def test_the_widget_draws_what_the_controls_ask_for():
    explorer = forgetting.left.widget()
    explorer.controls["form"].value = "what the key finds"
    explorer.wait()
    assert "forgets what the key finds" in explorer.picture.value


def test_the_seconds_are_of_every_model_at_both_lengths():
    took = forgetting.seconds_by_length((16, 32), width=8)
    assert all(first > 0 and second > 0 for first, second in took.values())
    assert "Mamba" in took
