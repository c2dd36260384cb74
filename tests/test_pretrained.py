"""Folders that Hugging Face transformers has written, loaded as models of ours."""

import json

import pytest
import test_against_transformers as theirs_of
import torch
from safetensors.torch import load_file, save_file

import qllk

NAMES = ("GPT-2", "BERT", "BERT, padded", "T5", "T5, padded")


@pytest.fixture(params=NAMES)
def rival(request):
    return theirs_of.RIVALS[request.param]


def saved(rival, folder, **options):
    """Their model, with weights moved off their start, and saved."""
    model = rival.theirs().eval()
    theirs_of.weights_of(model)
    model.save_pretrained(folder, **options)
    return model


def check_equal(rival, model, theirs):
    inputs = rival.inputs()
    counts = rival.counts(*inputs)
    with torch.no_grad():
        expected = theirs(**dict(zip(rival.keywords, inputs, strict=True))).logits
        found = model(*inputs)
    assert expected.abs().max() > 1
    torch.testing.assert_close(found * counts, expected * counts, rtol=1e-4, atol=1e-4)


def test_a_folder_of_transformers_gives_its_logits(rival, tmp_path):
    theirs = saved(rival, tmp_path)
    model = qllk.load_hf(tmp_path)
    assert model.spec.family == rival.spec.family
    check_equal(rival, model.eval(), theirs)


def test_weights_in_several_files_are_joined(tmp_path):
    rival = theirs_of.RIVALS["GPT-2"]
    theirs = saved(rival, tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    check_equal(rival, qllk.load_hf(tmp_path), theirs)


def rewrite(folder, change):
    """Change the weights of a folder, as a dictionary in place."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def test_the_names_of_the_published_files_are_understood(tmp_path):
    """GPT-2's have no prefix and hold its masks; BERT's norms have a gamma and a beta."""
    gpt2, bert = (theirs_of.RIVALS[name] for name in ("GPT-2", "BERT"))
    theirs = saved(gpt2, tmp_path / "gpt2"), saved(bert, tmp_path / "bert")

    def without_prefix(weights):
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        weights["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)

    def gamma_and_beta(weights):
        for name in list(weights):
            if "LayerNorm" in name:
                new = name.replace("weight", "gamma").replace("bias", "beta")
                weights[new] = weights.pop(name)
        weights["bert.pooler.dense.weight"] = torch.zeros(3, 3)
        weights["cls.seq_relationship.bias"] = torch.zeros(2)

    rewrite(tmp_path / "gpt2", without_prefix)
    rewrite(tmp_path / "bert", gamma_and_beta)
    check_equal(gpt2, qllk.load_hf(tmp_path / "gpt2"), theirs[0])
    check_equal(bert, qllk.load_hf(tmp_path / "bert"), theirs[1])


def test_a_loaded_model_has_a_gradient_everywhere(tmp_path):
    saved(theirs_of.RIVALS["GPT-2"], tmp_path)
    model = qllk.load_hf(tmp_path)
    model(theirs_of.ids(32)).logsumexp(-1).mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(name):
    def change(weights):
        del weights[name]

    return change


def cut(name):
    def change(weights):
        weights[name] = weights[name][:-1].contiguous()

    return change


def added(weights):
    weights["transformer.h.0.attn.c_gate.weight"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("changes", "change", "words"),
    [
        ({"activation_function": "relu"}, None, "activation_function must be 'gelu_new', got 'rel"),
        (
            {"model_type": "llama"},
            None,
            "unknown kind of model 'llama'; choose from bert, gpt2",
        ),
        ({"n_layer": 3}, None, r"the weights of our 'body.blocks.2.mix.out.bias' are missing"),
        ({"n_layer": 10**9}, None, "at most 256 layers can be built"),
        ({"n_embd": 10**7, "n_head": 10}, None, "have the shape"),
        ({"n_head": "three"}, None, "a mixer: heads must be a whole number above 0, got 'three'"),
        ({"vocab_size": 49}, None, r"'embed.weight' have the shape \(50, 24\), .* \(49, 24\)"),
        ({}, without("transformer.ln_f.bias"), "the weights of our 'norm.bias' are missing"),
        ({}, cut("transformer.wpe.weight"), r"the shape \(31, 24\)"),
        ({}, added, "the weight 'h.0.attn.c_gate.weight', which has no use here"),
    ],
)
def test_what_cannot_be_equal_is_refused_by_name(changes, change, words, tmp_path):
    saved(theirs_of.RIVALS["GPT-2"], tmp_path)
    config(tmp_path, **changes)
    if change:
        rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=words) as refused:
        qllk.load_hf(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_a_folder_that_is_damaged_or_incomplete_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        qllk.load_hf(tmp_path)
    saved(theirs_of.RIVALS["T5"], tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="can't be loaded"):
        qllk.load_hf(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors file"):
        qllk.load_hf(tmp_path)
    weights.write_bytes(whole)
    config(tmp_path, d_kv=9)
    with pytest.raises(ValueError, match="3 times 9 wide, which must make d_model=24"):
        qllk.load_hf(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        qllk.load_hf(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    weights.write_bytes(whole)
    with pytest.raises(ValueError, match=r"config\.json has no 'n_head'"):
        qllk.load_hf(tmp_path)
