"""Lesson 16: what its shapes see, what its texts allow, and the verdicts of its claims."""

import math

import pytest
import torch
from torch import nn

from qllk import Recipe, Trainer
from qllk.lab import ledger
from qllk.lab.lessons import shapes
from qllk.lab.pictures.charts import page_html
from qllk.model.families import build
from qllk.text.objectives import IGNORED, masked_token

LAST = 16


def verdicts(seen):
    return {finding.id: finding.verdict for finding in ledger.judge(shapes.CLAIMS, seen)}


def test_each_claim_holds_for_a_library_that_keeps_it_and_not_for_what_was_published():
    assert verdicts(shapes.OURS) == {
        **dict.fromkeys(("L48", "L49", "L50"), "holds"),
        "L52": "not tested here",
    }
    assert verdicts(shapes.Evidence())["L48"] == "does not hold"
    assert verdicts(shapes.Evidence())["L50"] == "does not hold"


def all_become_the_mask(ids, generator):
    batch = masked_token(ids, generator)
    return batch._replace(inputs=(torch.where(batch.targets != IGNORED, 256, ids),))


def half_are_hidden(ids, generator):
    return masked_token(ids, generator, rate=0.5)


@pytest.mark.parametrize("hide", [all_become_the_mask, half_are_hidden])
def test_other_shares_than_those_claimed_do_not_hold(hide):
    assert verdicts(shapes.Evidence(hide=hide))["L49"] == "does not hold"


def test_a_share_that_is_right_for_some_lengths_holds_in_part():
    seen = shapes.Evidence(share=lambda size: 0.15 if size < 200 else 0.06)
    assert verdicts(seen)["L50"] == "holds in part"


def test_a_model_of_half_the_layers_is_not_the_claimed_one():
    def half(preset):
        model = shapes.OURS.make(preset)
        blocks = [m for m in model.modules() if type(m).__name__ == "Block"]
        return nn.ModuleList(blocks[: len(blocks) // 2])

    assert verdicts(shapes.Evidence(make=half))["L48"] == "does not hold"


@pytest.mark.parametrize("padding", [0, 3, 6])
def test_only_a_gpt_and_what_is_written_hide_the_future(padding):
    assert not shapes.seen_by(shapes.GPT, padding)["its own text"].triu(1).any()
    assert not shapes.seen_by(shapes.T5, padding)["what it has written"].triu(1).any()
    text = LAST - padding
    both = shapes.seen_by(shapes.BERT, padding)["its own text"]
    assert both[:text, :text].all()
    assert not both[:text, text:].any()
    source = shapes.seen_by(shapes.T5, padding)["the source"]
    assert source[:, :text].all()
    assert not source[:, text:].any()


def test_every_control_changes_the_picture():
    pages = {
        page_html(shapes.look(shape, padding))
        for shape in (shapes.GPT, shapes.BERT, shapes.T5)
        for padding in (0, 3, 6)
    }
    assert len(pages) == 9


def test_the_widget_draws_what_the_controls_ask_for():
    explorer = shapes.look.widget()
    explorer.controls["shape"].value = shapes.T5
    explorer.wait()
    assert "T5 sees the source" in explorer.picture.value


def test_a_guesser_pays_the_entropy_of_the_first_letter():
    """Its logits know the four letters and the space, but no text."""
    text = shapes.twins()
    recipe = Recipe(steps=1, batch=1, window=96)
    trainer = Trainer(shapes.spec_of(shapes.GPT, d_model=16, layers=1), text, recipe)
    with torch.no_grad():
        trainer.model.norm.weight.zero_()
        trainer.model.norm.weight[0] = 0.0
    found = shapes.nats_by_place(trainer)
    assert found["first"] == pytest.approx(math.log(357), abs=1e-3)
    assert found["second"] == pytest.approx(found["first"])


def test_the_places_of_a_text_of_twins_are_told_apart():
    """A model that says the id it has just read: right for second letters, wrong for first."""

    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.spec, self.weight = shapes.spec_of(shapes.GPT), nn.Parameter(torch.zeros(1))

        def forward(self, ids):
            return 100.0 * nn.functional.one_hot(ids.long(), 357).float() + self.weight

    found = shapes.nats_by_place(Trainer(Again(), shapes.twins(), Recipe(window=96)))
    assert found["second"] == pytest.approx(0.0, abs=1e-3)
    assert found["first"] > 50


def test_a_sentence_counts_only_if_all_of_its_answer_is_right():
    toy = shapes.toy_language()
    spec = shapes.spec_of(shapes.T5, d_model=16, layers=1)
    trainer = Trainer(spec, toy, Recipe(steps=1, batch=1, window=96, question="pairs"))
    assert shapes.answered(trainer) == 0.0
    batch = trainer.ask(torch.tensor([list(b"\nred cat ran\tgat rojo cor\n")]), None)

    class Oracle(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.spec = nn.Parameter(torch.zeros(1)), spec

        def forward(self, source, ids, text):
            wanted = torch.cat((ids[:, 1:], torch.full_like(ids[:, :1], 10)), dim=1)
            return 9.0 * nn.functional.one_hot(wanted, 357).float()

    trainer.model = Oracle()
    assert (trainer.model(*batch.inputs).argmax(dim=-1) == batch.targets).all()


def test_the_held_out_sentences_are_made_of_known_words_and_new():
    toy = shapes.toy_language()
    read, held_out = (
        {line.split("\t")[0] for line in part.tobytes().decode().splitlines() if line}
        for part in (toy.train, toy.valid)
    )
    assert not read & held_out
    assert {word for line in held_out for word in line.split()} <= {
        word for line in read for word in line.split()
    }


def test_the_published_t5_ignores_its_source_and_the_published_bert_its_neighbours():
    ids = torch.tensor([list(b"abcdefgh")])
    spec = shapes.spec_of(shapes.T5, d_model=16, layers=1)
    for model, heard in ((shapes.Deaf(spec), False), (build(spec, seed=0), True)):
        assert torch.equal(model(ids, ids), model(ids.flip(1), ids)) is not heard
    hollow = shapes.Hollow(shapes.spec_of(shapes.BERT, d_model=16))
    changed = ids.clone()
    changed[0, 3] = 0
    assert (hollow(ids) != hollow(changed)).any(dim=-1).sum() == 1
