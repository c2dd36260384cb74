"""Writing with a model: the stream equals recomputing, draws follow the right chances."""

from itertools import islice

import pytest
import torch

from qllk.models import build
from qllk.probes import state_bytes, state_numbers
from qllk.sample import generate, greedy, sampler, stream
from qllk.spec import Patch, Spec

CONV, CUMSUM, SOFTMAX = ("conv", {"width": 3}), ("cumsum", {}), ("softmax", {"heads": 2})
PATCHED = Spec(
    d_model=8,
    layers=2,
    mixers=(CONV,),
    patch=Patch(size=4, d_model=8, layers=1, mixers=(CUMSUM,)),
    dropout=0.5,
)
ATTENTION = Spec(d_model=8, layers=2, mixers=(SOFTMAX,), positions="rotary")


def made(spec, seed=3):
    """A model whose logits lie far enough apart that its greedy text is not one byte repeated."""
    model = build(spec, seed=seed).double().eval()
    model.head.weight.data.mul_(20)
    return model


# ---------------------------------------------------------------- streaming


@pytest.mark.parametrize("spec", [PATCHED, ATTENTION], ids=["patched", "attention"])
def test_a_greedy_stream_equals_recomputing_the_prefix(spec):
    model = made(spec)
    prompt = torch.randint(256, (2, 5))
    ids = prompt
    with torch.no_grad():
        for _ in range(20):
            ids = torch.cat((ids, model(ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
    streamed = torch.stack(list(islice(stream(model, prompt, greedy), 20)), dim=1)
    assert torch.equal(streamed, ids[:, 5:])
    assert len(set(streamed[0].tolist())) > 3


def test_generate_gives_the_bytes_that_follow():
    model = made(PATCHED)
    prompt = torch.tensor([list(b"def")])
    expected = bytes(int(ids) for ids in islice(stream(model, prompt, greedy), 12))
    assert generate(model, "def", 12) == generate(model, b"def", 12) == expected
    assert generate(model, "def", 0) == b""
    assert generate(model, "é", 3) == generate(model, "é".encode(), 3)


def test_generate_switches_dropout_off_and_back_on():
    model = made(PATCHED).train()
    first = generate(model, "x", 20)
    assert model.training
    assert generate(model, "x", 20) == first


def test_streaming_stores_no_gradients():
    model = made(PATCHED)
    for ids in islice(stream(model, torch.zeros(1, 3, dtype=torch.long), greedy), 3):
        assert not ids.requires_grad
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.slow
def test_the_state_of_qllk_2_is_as_large_after_a_million_bytes_as_after_a_thousand():
    model, state, sizes = build("qllk-2", seed=0).eval(), None, []
    with torch.no_grad():
        for length in (1_000, *[999_000 // 27] * 27):
            _, state = model.run(torch.randint(256, (1, length)), state)
            sizes.append(state_bytes(state))
    assert state.t == 1_000_000
    assert len(set(sizes)) == 1
    assert sizes[0] > 0


def test_the_state_of_attention_grows_with_every_byte():
    model = made(ATTENTION)
    _, small = model.run(torch.zeros(1, 10, dtype=torch.long))
    _, large = model.run(torch.zeros(1, 20, dtype=torch.long))
    assert state_numbers(large) == 2 * state_numbers(small)


# ---------------------------------------------------------------- picking


def chances(logits, temperature=1.0, top_k=None, top_p=None):
    """What a sampler should draw, by sorting a list."""
    weights = [(logit / temperature).exp().item() for logit in logits.double()]
    ranked = sorted(range(len(weights)), key=lambda i: -weights[i])
    total, kept, held = sum(weights), [], 0.0
    for rank, i in enumerate(ranked):
        if top_k is not None and rank >= top_k:
            break
        if top_p is not None and held >= top_p:
            break
        kept.append(i)
        held += weights[i] / total
    left = sum(weights[i] for i in kept)
    return torch.tensor([weights[i] / left if i in kept else 0.0 for i in range(len(weights))])


LOGITS = torch.tensor([[0.0, 2.0, 1.0, -1.0, 2.5, 0.5]])
SETTINGS = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 99},
    {"top_p": 0.01},
    {"top_p": 0.6},
    {"top_p": 0.9},
    {"top_p": 1.0},
    {"temperature": 2.0, "top_k": 4, "top_p": 0.7},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_draws_follow_the_chances_of_a_slow_reference(setting, monkeypatch):
    asked = []

    def multinomial(weights, count, generator):
        asked.append(weights / weights.sum(-1, keepdim=True))
        return torch.zeros(weights.shape[0], count, dtype=torch.long)

    monkeypatch.setattr(torch, "multinomial", multinomial)
    assert sampler(**setting, seed=0)(LOGITS).tolist() == [4]  # first in rank: the likeliest
    expected = chances(LOGITS[0], **setting).sort(descending=True).values
    torch.testing.assert_close(asked[0][0].float(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_what_is_drawn_is_drawn_as_often_as_it_should(setting):
    pick = sampler(**setting, seed=0)
    drawn = pick(LOGITS.expand(20_000, -1)).bincount(minlength=6) / 20_000
    torch.testing.assert_close(drawn, chances(LOGITS[0], **setting), rtol=0, atol=0.015)


def test_rows_are_drawn_each_by_its_own_logits():
    logits = torch.full((3, 4), -1e9)
    logits[torch.arange(3), torch.tensor([2, 0, 3])] = 0.0
    assert sampler(seed=0)(logits).tolist() == greedy(logits).tolist() == [2, 0, 3]


def test_the_rarest_id_is_not_lost_to_rounding_when_all_are_wanted(monkeypatch):
    seen = []

    def multinomial(weights, count, generator):
        seen.append(weights)
        return torch.zeros(weights.shape[0], count, dtype=torch.long)

    monkeypatch.setattr(torch, "multinomial", multinomial)
    sampler(top_p=1.0, seed=0)(10 * torch.randn(500, 256))
    assert (seen[0] > 0).all()


def test_the_same_seed_writes_the_same_text_whatever_else_is_drawn():
    model = made(PATCHED)
    first = generate(model, "x", 30, sampler(seed=1))
    torch.rand(5)
    assert generate(model, "x", 30, sampler(seed=1)) == first
    assert generate(model, "x", 30, sampler(seed=2)) != first


def test_sampling_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    generate(made(PATCHED), "x", 5, sampler())
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- errors


def test_an_empty_prompt_or_a_negative_length_is_refused():
    model = made(PATCHED)
    with pytest.raises(ValueError, match="prompt is empty; give at least one byte"):
        generate(model, "", 3)
    with pytest.raises(ValueError, match="length must be 0 or more, got -1"):
        generate(model, "x", -1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0}, "temperature must be above 0, got 0; greedy is the limit"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"top_k": 0}, "top_k must be a whole number, 1 or more, got 0"),
        ({"top_k": 2.5}, "top_k must be a whole number, 1 or more, got 2.5"),
        ({"top_p": 0.0}, "top_p must lie above 0 and at most at 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must lie above 0 and at most at 1, got 1.1"),
    ],
)
def test_a_sampler_that_cannot_draw_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        sampler(**setting)
