"""A run that starts from the weights of an earlier one."""

import numpy as np
import pytest
import test_against_transformers as theirs_of
import torch
from helpers import SPEC, TINY, same

import qllk
from qllk.text.corpora import Corpus
from qllk.training import checkpoint
from qllk.training.finetune import pretrained_model

RECIPE = qllk.Recipe(steps=3, batch=2, window=32, validate_bytes=300)


def trained(spec, path, text="task:markov:20000:0", steps=60):
    trainer = qllk.Trainer(spec, qllk.corpus(text), qllk.Recipe(steps=steps, batch=2, window=32))
    for _ in trainer:
        pass
    checkpoint.save(trainer, path)
    return trainer


@pytest.mark.parametrize("preset", ["qllk-3-nano", "gpt2-nano", "bert-nano", "t5-nano"])
def test_a_fine_tuned_run_starts_with_every_weight_of_the_checkpoint(preset, tmp_path):
    spec, path = TINY[preset], tmp_path / "first.safetensors"
    spec = spec.but(vocab_size=max(spec.vocab_size, 300))
    first = trained(spec, path, steps=2)
    model = pretrained_model(path, qllk.corpus("task:copy:20000:0"), RECIPE)
    same(dict(model.state_dict()), dict(first.model.state_dict()), atol=0)


def test_the_vectors_of_known_ids_are_kept_and_new_ids_get_fresh_ones(tmp_path):
    path = tmp_path / "first.safetensors"
    first = trained(SPEC, path, steps=2)
    rng = np.random.default_rng(0)
    ids = rng.integers(300, size=(2, 2000)).astype(np.uint16)

    class Ids:
        vocab_size = 300

        def encode(self, text):
            raise NotImplementedError

        def decode(self, ids):
            return bytes(len(ids))

        def to_json(self):
            return "{}"

    text = Corpus("ids", *ids, tokenizer=Ids())
    model = pretrained_model(path, text, RECIPE)
    assert model.spec.vocab_size == 300
    for name in ("embed.weight", "head.weight"):
        found, learned = model.state_dict()[name], first.model.state_dict()[name]
        same(found[:256], learned, atol=0)
        assert found[256:].std() > 0
    assert next(qllk.Trainer(model, text, RECIPE)).step == 1


def test_a_text_like_the_first_one_is_learned_in_a_third_of_the_steps(tmp_path):
    path = tmp_path / "first.safetensors"
    trained(SPEC, path, steps=300)
    text = qllk.corpus("task:markov:20000:1")

    def loss(what, steps):
        trainer = qllk.Trainer(what, text, qllk.Recipe(steps=steps, batch=2, window=32))
        for _ in trainer:
            pass
        return trainer.validate()

    fresh = loss(SPEC, 60)
    assert loss(pretrained_model(path, text, RECIPE), 20) < fresh


def test_published_weights_are_fine_tuned_from_their_folder(tmp_path):
    model = theirs_of.RIVALS["GPT-2"].theirs()
    model.save_pretrained(tmp_path)
    text = qllk.corpus("task:markov:20000:0")
    found = pretrained_model(tmp_path, text, RECIPE)
    assert found.spec.vocab_size == 256
    same(found.embed.weight[: theirs_of.VOCABULARY], qllk.load_hf(tmp_path).embed.weight, atol=0)
    assert torch.isfinite(torch.tensor(next(qllk.Trainer(found, text, RECIPE)).nats))


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path):
    text = qllk.corpus("task:markov:20000:0")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        pretrained_model(tmp_path / "no.safetensors", text, RECIPE)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        pretrained_model(tmp_path, text, RECIPE)


def test_a_classifier_starts_from_an_encoder_with_a_head_of_its_own(tmp_path):
    path, text = tmp_path / "first.safetensors", qllk.corpus("task:moods:20000")
    first = trained(TINY["bert-nano"].but(vocab_size=257), path, steps=2)
    recipe = qllk.Recipe(steps=2, batch=2, window=160, question="labels", validate_bytes=300)
    model = pretrained_model(path, text, recipe, lambda spec: spec.but(head="pooled"))
    found, learned = model.state_dict(), first.model.state_dict()
    assert {name for name in found if name not in learned} == set()
    same(found["embed.weight"][:257], learned["embed.weight"], atol=0)
    layers = [name for name in found if name.startswith("encoder.")]
    assert all(torch.equal(found[name], learned[name]) for name in layers)
    assert not torch.equal(found["head.transform.weight"], learned["head.transform.weight"])
    assert [record.step for record in qllk.Trainer(model, text, recipe)] == [1, 2]
