"""Mamba and Mamba-2 equal Hugging Face transformers, in logits and in every gradient."""

import pytest
import torch
import transformers
from helpers import same

from qllk.model.families import build
from qllk.model.mamba import Mamba, _first_steps
from qllk.spec import Spec

D, LAYERS, VOCABULARY = 8, 2, 30
_ENDS = {"backbone.embeddings": "embed", "backbone.norm_f": "norm", "lm_head": "head"}
_COMMON = {
    "norm": "norm_mix",
    "mixer.out_proj": "mix.out",
    "mixer.A_log": "mix.log_A",
    "mixer.D": "mix.skip",
    "mixer.conv1d.weight": "mix.taps",
    "mixer.conv1d.bias": "mix.taps_bias",
}
MAMBA = {
    **_COMMON,
    "mixer.in_proj": "mix.xz",
    "mixer.x_proj": "mix.select",
    "mixer.dt_proj.weight": "mix.step.weight",
    "mixer.dt_proj.bias": "mix.step_bias",
}
MAMBA2 = {
    **_COMMON,
    "mixer.in_proj": "mix.project",
    "mixer.dt_bias": "mix.step_bias",
    "mixer.norm": "mix.norm",
}
SPEC = Spec(
    d_model=D,
    layers=LAYERS,
    mixers=(("mamba", {"states": 5, "rank": 2}),),
    mlp=("none", {}),
    norm=("rms", {"eps": 1e-5}),
    vocab_size=VOCABULARY,
)


def mamba():
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        state_size=5,
        num_hidden_layers=LAYERS,
        time_step_rank=2,
        tie_word_embeddings=False,
    )
    return transformers.MambaForCausalLM(config)


def mamba2():
    config = transformers.Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=D,
        state_size=6,
        num_hidden_layers=LAYERS,
        num_heads=4,
        head_dim=4,
        n_groups=1,
        chunk_size=16,
        tie_word_embeddings=False,
    )
    return transformers.Mamba2ForCausalLM(config)


MODELS = {
    "Mamba": (mamba, SPEC, MAMBA),
    "Mamba-2": (mamba2, SPEC.but(mixers=(("mamba2", {"heads": 4, "states": 6}),)), MAMBA2),
}


def renamed(name, parts):
    """Our name of one of their weights."""
    stem, _, kind = name.rpartition(".")
    if stem in _ENDS:
        return f"{_ENDS[stem]}.{kind}"
    _, _, layer, part = name.split(".", 3)
    whole = parts.get(part) or f"{parts[part.rpartition('.')[0]]}.{kind}"
    return f"body.blocks.{layer}.{whole}"


def reshaped(name, weight):
    """Their taps are (E,1,W) with the newest last; A of Mamba is stored flat here."""
    if name.endswith("conv1d.weight"):
        return weight[:, 0].flip(1).t()
    return weight.flatten() if name.endswith("A_log") else weight


@pytest.mark.parametrize(("make", "spec", "parts"), MODELS.values(), ids=MODELS)
def test_logits_and_gradients_equal_those_of_transformers(make, spec, parts, monkeypatch):
    # Their scans compute in float32; here that is float64.
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    theirs = make().double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    ours, ids = build(spec).double(), torch.randint(VOCABULARY, (2, 37))
    weights = dict(theirs.named_parameters())
    copied = {renamed(n, parts): reshaped(n, w) for n, w in weights.items()}
    found = torch.func.functional_call(ours, copied, (ids,), strict=True)
    expected = theirs(ids, use_cache=False).logits
    same(found, expected)
    weigh = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    pairs = (
        torch.autograd.grad((logits * weigh).sum(), weights.values())
        for logits in (found, expected)
    )
    for name, one, other in zip(weights, *pairs, strict=True):
        assert other.any(), name
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, msg=name)


def test_the_first_steps_run_from_a_thousandth_to_a_tenth():
    steps = torch.nn.functional.softplus(_first_steps(5).double())
    same(steps, torch.logspace(-3, -1, 5).double(), atol=1e-6)


def test_the_speeds_of_a_channel_have_no_weight_decay():
    mixer = Mamba(8, states=3)
    assert mixer.log_A.ndim == 1
    same(mixer.log_A.view(16, 3)[5].exp(), torch.tensor([1.0, 2, 3]), atol=1e-6)
