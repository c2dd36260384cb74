"""RWKV-4 equals Hugging Face transformers; RWKV-7 and the rest equal their formulas; both learn."""

import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import same, vectors

from qllk.model.families import build, count_parameters
from qllk.model.rwkv import (
    RWKV4ChannelMix,
    RWKV4TimeMix,
    RWKV7ChannelMix,
    RWKV7TimeMix,
    TokenShift,
)
from qllk.presets import PRESETS
from qllk.probes.baselines import table_losses
from qllk.study.race import race_here
from qllk.text.corpora import corpus
from qllk.training.recipe import Recipe

D, LAYERS, VOCABULARY = 12, 3, 30
NANOS = ("rwkv4-nano", "rwkv7-nano")


# ---------------------------------------------------------------- RWKV-4, against transformers

_TIME = {
    "ln1": "norm_mix",
    "attention.time_decay": "mix.log_speed",
    "attention.time_first": "mix.bonus",
    "attention.time_mix_key": "mix.shift.shares.0",
    "attention.time_mix_value": "mix.shift.shares.1",
    "attention.time_mix_receptance": "mix.shift.shares.2",
    "attention.key": "mix.key",
    "attention.value": "mix.value",
    "attention.receptance": "mix.receptance",
    "attention.output": "mix.out",
}
_CHANNEL = {
    "ln2": "norm_mix",
    "feed_forward.time_mix_key": "mix.shift.shares.0",
    "feed_forward.time_mix_receptance": "mix.shift.shares.1",
    "feed_forward.key": "mix.mlp.up",
    "feed_forward.receptance": "mix.receptance",
    "feed_forward.value": "mix.mlp.out",
}
_ENDS = {
    "rwkv.embeddings": "embed",
    "rwkv.blocks.0.pre_ln": "norm_in",
    "rwkv.ln_out": "norm",
    "head": "head",
}


def renamed(name):
    """Our name of one of their weights: their layer is two blocks of ours."""
    names = dict(_ENDS)
    for i in range(LAYERS):
        for block, parts in ((2 * i, _TIME), (2 * i + 1, _CHANNEL)):
            for theirs, ours in parts.items():
                names[f"rwkv.blocks.{i}.{theirs}"] = f"body.blocks.{block}.{ours}"
    if name in names:
        return names[name]
    stem, kind = name.rsplit(".", 1)
    return f"{names[stem]}.{kind}"


def copied(weights):
    """Their weights as ours. A mix is the share of this step, ours are those of the one before."""
    return {
        renamed(name): 1 - weight.flatten() if "time_mix" in name else weight
        for name, weight in weights.items()
    }


@pytest.fixture
def theirs(monkeypatch):
    # Their loop computes in float32; here that is float64.
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    config = transformers.RwkvConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        num_hidden_layers=LAYERS,
        intermediate_size=3 * D,
        rescale_every=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.RwkvForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def weighed(logits):
    weigh = torch.Generator().manual_seed(1)
    return (logits * torch.randn(logits.shape, generator=weigh, dtype=logits.dtype)).sum()


def test_logits_and_gradients_of_rwkv4_equal_those_of_transformers(theirs):
    spec = PRESETS["rwkv4-nano"].but(
        d_model=D,
        layers=2 * LAYERS,
        mixers=(("rwkv4", {}), ("rwkv4-channel", {"ratio": 3})),
        norm=("layer", {}),
        norm_in=("layer", {}),
        vocab_size=VOCABULARY,
    )
    ours, ids = build(spec).double(), torch.randint(VOCABULARY, (2, 37))  # beyond two chunks
    weights = dict(theirs.named_parameters())
    found = torch.func.functional_call(ours, copied(weights), (ids,), strict=True)
    expected = theirs(ids, use_cache=False).logits
    same(found, expected)
    for name, gradient, wanted in zip(
        weights,
        torch.autograd.grad(weighed(found), weights.values()),
        torch.autograd.grad(weighed(expected), weights.values()),
        strict=True,
    ):
        assert wanted.any(), name
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9, msg=name)


# ---------------------------------------------------------------- by their formulas


def test_a_token_shift_moves_each_step_towards_the_one_before():
    shift = TokenShift(2, (1.0, 0.5)).double()
    same(shift.shares[0].detach(), torch.tensor([1.0, 0.5]).double())
    same(shift.shares[1].detach(), torch.tensor([1.0, 1 - 0.5**0.5]).double(), atol=1e-7)
    x = torch.tensor([[[1.0, 1], [3, 5]]], dtype=torch.float64)
    (first, _), last = shift(x)
    same(first[0].detach(), torch.tensor([[0.0, 0.5], [1, 3]]).double())
    same(last, x[:, 1])
    (after, _), _ = shift(x[:, :1], last)
    same(after[0].detach(), torch.tensor([[3.0, 3]]).double())


def shifted(mixer, x):
    """x (T,D) after each of the mixer's token shifts."""
    before = torch.cat((torch.zeros_like(x[:1]), x[:-1]))
    return [(1 - share) * x + share * before for share in mixer.shift.shares]


def test_time_mixing_of_rwkv4_computes_its_formula():
    mixer, x = RWKV4TimeMix(4).double(), vectors(1, 5, 4)
    k, v, r = shifted(mixer, x[0])
    k, v, r = k @ mixer.key.weight.T, v @ mixer.value.weight.T, r @ mixer.receptance.weight.T
    rows = []
    for t in range(5):
        ages = torch.arange(t - 1, -1, -1)[:, None]
        weights = (k[:t] - ages * mixer.log_speed.exp()).exp()
        weights = torch.cat((weights, (k[t : t + 1] + mixer.bonus).exp()))
        rows.append((weights * v[: t + 1]).sum(0) / weights.sum(0))
    same(mixer(x)[0][0], (r.sigmoid() * torch.stack(rows)) @ mixer.out.weight.T)


def test_time_mixing_of_rwkv7_computes_the_equations_of_the_paper():
    mixer, x = RWKV7TimeMix(6, heads=2, rank=3).double(), vectors(1, 7, 6)
    with torch.no_grad():  # where every weight of the norm is 1 and every bias 0 at the start
        for weight in mixer.parameters():
            weight += 0.3 * torch.randn_like(weight)
    x_r, x_d, x_k, x_v, x_a, x_g = shifted(mixer, x[0])
    r, k, v = x_r @ mixer.receptance.weight.T, x_k @ mixer.key.weight.T, x_v @ mixer.value.weight.T
    d = mixer.decay_bias + torch.tanh(x_d @ mixer.decay[0].weight.T) @ mixer.decay[2].weight.T
    w = torch.exp(-math.exp(-0.5) * d.sigmoid())
    a = (mixer.rate_bias + x_a @ mixer.rate[0].weight.T @ mixer.rate[2].weight.T).sigmoid()
    g = (x_g @ mixer.gate[0].weight.T).sigmoid() @ mixer.gate[2].weight.T
    kappa = k * mixer.removal
    replacement = k * (1 - mixer.replacement + a * mixer.replacement)
    outputs = []
    for part in (slice(0, 3), slice(3, 6)):
        S, rows = torch.zeros(3, 3).double(), []  # V x K, as in the paper
        for t in range(7):
            hat = kappa[t, part] / kappa[t, part].norm()
            S = S @ (w[t, part].diag() - torch.outer(hat, a[t, part] * hat))
            S = S + torch.outer(v[t, part], replacement[t, part])
            rows.append(S @ r[t, part])
        o = torch.stack(rows)
        centred = o - o.mean(-1, keepdim=True)
        o = centred / (centred.square().mean(-1, keepdim=True) + 64e-5).sqrt()
        o = o * mixer.norm.weight[part] + mixer.norm.bias[part]
        match = (r * mixer.bonus * replacement)[:, part].sum(-1, keepdim=True)
        outputs.append(o + match * v[:, part])
    same(mixer(x)[0][0], (g * torch.cat(outputs, dim=1)) @ mixer.out.weight.T)


def test_channel_mixing_computes_its_formula():
    mixer, x = RWKV4ChannelMix(4, ratio=2).double(), vectors(1, 5, 4)
    k, r = shifted(mixer, x[0])
    hidden = F.relu(k @ mixer.mlp.up.weight.T).square()
    y = (r @ mixer.receptance.weight.T).sigmoid() * (hidden @ mixer.mlp.out.weight.T)
    same(mixer(x)[0][0], y)
    plain = RWKV7ChannelMix(4, ratio=2).double()
    (k,) = shifted(plain, x[0])
    hidden = F.relu(k @ plain.mlp.up.weight.T).square()
    same(plain(x)[0][0], hidden @ plain.mlp.out.weight.T)


def test_the_strongest_decay_of_rwkv7_is_within_the_limit_of_its_kernel():
    mixer = RWKV7TimeMix(6, heads=2, rank=3)
    torch.nn.init.constant_(mixer.decay_bias, 100.0)
    with torch.no_grad():
        y, state = mixer(torch.randn(1, 200, 6))
    assert y.isfinite().all()
    assert state.S.isfinite().all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": 5}, "heads=5 must divide d_model=6"),
        ({"rank": 0}, "rwkv7: rank must be a whole number above 0, got 0"),
    ],
)
def test_rwkv7_refuses_what_does_not_fit(change, said):
    with pytest.raises(ValueError, match=said):
        RWKV7TimeMix(6, **{"heads": 2, "rank": 3, **change})


@pytest.mark.parametrize("mixer", [RWKV4TimeMix(8), RWKV7TimeMix(8, heads=2, rank=3)])
def test_a_mixer_in_pure_half_precision_keeps_its_dtype(mixer):
    y, state = mixer.to(torch.bfloat16)(torch.randn(2, 5, 8, dtype=torch.bfloat16))
    assert y.dtype == state.x.dtype == torch.bfloat16
    assert {numbers.dtype for numbers in state[1:]} == {torch.float32}
    assert mixer(torch.randn(2, 1, 8, dtype=torch.bfloat16), state)[0].dtype == torch.bfloat16


# ---------------------------------------------------------------- presets


@pytest.mark.parametrize("name", NANOS)
def test_an_rwkv_is_about_as_large_as_gpt_nano(name):
    own, rival = (count_parameters(build(PRESETS[what])) for what in (name, "gpt-nano"))
    assert rival < own < 1.15 * rival


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NANOS)
def test_an_rwkv_learns_more_than_pairs_of_bytes_tell(name):
    text, recipe = corpus("stdlib"), Recipe(steps=150)
    bigram = table_losses(text.train, text.valid[: recipe.validate_bytes])["bigram"]
    [found] = race_here({name: PRESETS[name]}, text, recipe, seeds=1, points=1)[name]
    assert found.curve[-1].nats < bigram - 0.05
