"""Writing with a model: the stream equals recomputing, draws follow the right chances, and a draft
that guesses ahead changes neither.
"""

from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, built, same

from qllk.model import sample
from qllk.model.families import build
from qllk.model.sample import (
    generate,
    greedy,
    penalize_repetition,
    probabilities,
    sampler,
    speculate,
    stream,
)
from qllk.probes.inside import state_bytes, state_numbers
from qllk.spec import Patch, Spec
from qllk.text import tokens

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


def test_a_module_without_run_writes_the_same_by_reading_everything_again():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = made(PATCHED)

        def forward(self, ids):
            return self.inner(ids)

    written = generate(made(PATCHED), "import ", 12)
    assert generate(Plain(), "import ", 12) == written
    assert generate(Plain(), "import ", 12, tokenizer=tokens.Bytes()) == written
    assert sample.positions_left(Plain(), torch.zeros(1, 5), 9) == 9


def test_generate_gives_the_bytes_that_follow():
    model = made(PATCHED)
    prompt = torch.tensor([list(b"def")])
    expected = bytes(int(ids) for ids in islice(stream(model, prompt, greedy), 12))
    assert generate(model, "def", 12) == generate(model, b"def", 12) == expected
    assert generate(model, "def", 0) == b""
    assert generate(model, "é", 3) == generate(model, "é".encode(), 3)


def test_generate_takes_any_tokenizer_and_bytes_are_one():
    bpe = tokens.BPE.train(b"the cat sat on the mat. " * 9, vocab_size=268)
    model = made(PATCHED.but(vocab_size=268))
    prompt = torch.from_numpy(bpe.encode("the cat").astype("int64"))[None]
    assert prompt.shape[1] < 7, "merges are used"
    ids = [int(i) for i in islice(stream(model, prompt, greedy), 30)]
    assert max(ids) > 255
    assert generate(model, "the cat", 30, tokenizer=bpe) == bpe.decode(ids)
    model = made(PATCHED)
    assert generate(model, "é", 9, tokenizer=tokens.Bytes()) == generate(model, "é", 9)


def test_a_stream_of_an_encoder_decoder_starts_from_what_it_read():
    model = made(TINY["t5-nano"])
    source, ids = torch.arange(9)[None], torch.tensor([[7]])
    with torch.no_grad():
        written = stream(model, ids, greedy, model.encode(source))
        for _ in range(12):
            ids = torch.cat((ids, model(source, ids)[:, -1:].argmax(-1)), dim=1)
    assert [int(i) for i in islice(written, 12)] == ids[0, 1:].tolist()


def test_a_stream_goes_on_from_a_state():
    model = made(PATCHED)
    text = torch.tensor([list(b"abcdefg")])
    with torch.no_grad():
        _, state = model.run(text[:, :4])
    whole, rest = stream(model, text, greedy), stream(model, text[:, 4:], greedy, state)
    assert list(islice(rest, 12)) == list(islice(whole, 12))


def test_a_model_that_knows_more_ids_than_its_text_writes_text():
    model = build(PATCHED.but(vocab_size=300, dropout=0.0), seed=0)
    with torch.no_grad():
        model.head.weight[256:] = 9.0 * model.head.weight[:44]
    ids = [int(id) for id in islice(stream(model, torch.tensor([[65]]), greedy), 40)]
    assert max(ids) > 255
    assert len(generate(model, "A", 40)) == 40


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


def expected(logits, temperature=1.0, top_k=None, top_p=None):
    """What should be drawn, by sorting a list."""
    if temperature == 0:
        temperature, top_k = 1.0, 1
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
    {"temperature": 0},
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
def test_chances_are_those_of_a_slow_reference(setting):
    rows = torch.stack((LOGITS, LOGITS.flip(-1)))  # (2,1,6): of any shape
    weights = probabilities(**setting)(rows)
    same(weights[0, 0].float(), expected(LOGITS[0], **setting), atol=1e-6)
    same(weights[1, 0], weights[0, 0].flip(-1))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_what_is_drawn_is_drawn_as_often_as_it_should(setting):
    pick = sampler(**setting, seed=0)
    drawn = pick(LOGITS.expand(20_000, -1)).bincount(minlength=6) / 20_000
    same(drawn, expected(LOGITS[0], **setting), atol=0.015)


def test_of_equals_temperature_0_takes_the_first_as_greedy_does():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    assert sampler(0, seed=0)(logits).tolist() == greedy(logits).tolist() == [1, 0]


def test_rows_are_drawn_each_by_its_own_logits():
    logits = torch.full((3, 4), -1e9)
    logits[torch.arange(3), torch.tensor([2, 0, 3])] = 0.0
    assert sampler(seed=0)(logits).tolist() == greedy(logits).tolist() == [2, 0, 3]


def test_the_rarest_id_is_not_lost_to_rounding_when_all_are_wanted():
    assert (probabilities(top_p=1.0)(10 * torch.randn(500, 256)) > 0).all()


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


# ---------------------------------------------------------------- repetition


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.3, 50.0])
def test_a_penalty_is_that_of_transformers(penalty):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    ids, given = torch.randint(9, (3, 4)), []

    def pick(logits):
        given.append(logits)
        return torch.randint(9, (3,))

    pick = penalize_repetition(pick, penalty, ids.byte())
    for _ in range(6):  # what it picks counts from the next time on
        logits = torch.randn(3, 9)
        new = pick(logits)
        same(given[-1], theirs(ids, logits), atol=0)
        ids = torch.cat((ids, new[:, None]), dim=1)


def test_a_penalty_goes_with_any_pick_and_leaves_the_logits_alone():
    logits, before = LOGITS.clone(), LOGITS.clone()
    prompt = torch.tensor([[4, 4]])
    assert penalize_repetition(greedy, 2.0, prompt)(logits).tolist() == [1]
    assert penalize_repetition(sampler(top_k=1), 2.0, prompt)(logits).tolist() == [1]
    assert torch.equal(logits, before)


def test_a_penalty_keeps_a_greedy_text_from_going_round():
    model, prompt = made(ATTENTION), torch.tensor([list(b"x")])
    plain = list(islice(stream(model, prompt, greedy), 40))
    lively = list(islice(stream(model, prompt, penalize_repetition(greedy, 1.5, prompt)), 40))
    assert len(set(map(int, lively))) > len(set(map(int, plain)))


# ---------------------------------------------------------------- speculating

SINKS = ("softmax", {"heads": 2, "window": 5, "sinks": 2})
DELTA = ("delta", {"heads": 2, "decay": "head"})
FOLDED = ("folded", {"size": 3, "mixer": ("cumsum", {})})
CAUSAL = {name: spec for name, spec in TINY.items() if spec.family != "encoder"} | {
    "patches": PATCHED,
    "sinks": Spec(d_model=8, layers=2, mixers=(SINKS,), positions="rotary"),
    "delta and folds": Spec(d_model=8, layers=2, mixers=(DELTA, FOLDED)),
}


def made_causal(spec):
    model = built(spec).double().eval()
    next(m for name, m in model.named_modules() if name.endswith("head")).weight.data.mul_(20)
    return model


class Watched:
    """A model that notes, at each call, all that it has read by then."""

    def __init__(self, model):
        self.model, self.spec, self.read = model, model.spec, []

    def run(self, ids, state=None):
        text, state = state or ([], None)
        text = text + ids[0].tolist()
        self.read.append(text)
        logits, state = self.model.run(ids, state)
        return logits, (text, state)


def noisy(model, size):
    """The same model with weights a little off: a draft as training would give."""
    spec, draft = model.spec, made_causal(model.spec)
    assert spec == draft.spec
    for mine, its in zip(draft.parameters(), model.parameters(), strict=True):
        mine.data = its.data + size * its.data.std() * torch.randn_like(its)
    return draft


DRAFTS = {"equal": 0.0, "good": 0.02, "bad": 3.0}
each_draft = pytest.mark.parametrize("off", DRAFTS.values(), ids=DRAFTS)


@each_draft
@pytest.mark.parametrize("spec", CAUSAL.values(), ids=CAUSAL)
def test_greedy_with_a_draft_writes_what_greedy_writes(spec, off):
    model, prompt = made_causal(spec), torch.randint(spec.vocab_size, (1, 7))
    plain = list(islice(stream(model, prompt, greedy), 40))
    written = speculate(model, noisy(model, off), prompt, probabilities(0), ahead=3)
    assert list(islice(written, 40)) == plain


def test_a_draft_may_be_of_another_family():
    model, draft = made(ATTENTION), made(PATCHED)
    prompt = torch.tensor([list(b"abc")])
    plain = list(islice(stream(model, prompt, greedy), 40))
    assert list(islice(speculate(model, draft, prompt, probabilities(0)), 40)) == plain


def test_with_a_draft_an_encoder_decoder_starts_from_what_both_read():
    model, draft = build(TINY["t5-nano"], seed=0).double(), build(TINY["t5-nano"], seed=1).double()
    source, start = torch.arange(9)[None], torch.tensor([[7]])
    with torch.no_grad():
        states = model.encode(source), draft.encode(source)
    plain = list(islice(stream(model, start, greedy, states[0]), 20))
    written = speculate(model, draft, start, probabilities(0), states=states)
    assert list(islice(written, 20)) == plain


@pytest.mark.parametrize("setting", [{"temperature": 0}, {}, {"top_p": 0.5}], ids=str)
@pytest.mark.parametrize(("prompt", "extra"), [(b"abc", 0), (b"abcdefgh", 1)])
def test_an_equal_draft_makes_one_call_of_ahead_plus_one_ids(setting, prompt, extra):
    model = made(PATCHED)
    watched, ids = Watched(model), torch.tensor([list(prompt)])
    assert (
        len(list(islice(speculate(watched, model, ids, probabilities(**setting), seed=0), 50)))
        == 50
    )
    assert len(watched.read) == 50 / (4 + 1) + extra  # a prompt longer than `ahead` is read first


def calls_per_id(off, ahead=4, length=200):
    model = made_causal(ATTENTION)
    watched, prompt = Watched(model), torch.tensor([list(b"abc")])
    written = speculate(watched, noisy(model, off), prompt, probabilities(), ahead, seed=0)
    assert len(list(islice(written, length))) == length
    return len(watched.read) / length


def test_a_better_draft_saves_more_calls_and_the_worst_costs_few():
    equal, good, bad = map(calls_per_id, DRAFTS.values())
    assert equal == 1 / 5 < good < 0.5 < bad <= 1 + 1 / 4


@each_draft
def test_both_go_on_from_the_text_whatever_was_guessed(off):
    model, prompt = made_causal(ATTENTION), torch.tensor([list(b"abc")])
    draft, model = Watched(noisy(model, off)), Watched(model)
    text, rounds = prompt[0].tolist(), 0
    for id in islice(speculate(model, draft, prompt, probabilities(0.5), ahead=3, seed=0), 60):
        if len(draft.read) > 3 * rounds:  # this is the first id of another round
            rounds += 1
            assert draft.read[-3] == model.read[-1][:-3] == text
        text.append(int(id))
    assert rounds >= 15


class ByTable:
    """A model of three ids: the logits of the next by the last two."""

    spec = SimpleNamespace(vocab_size=3)

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.table = 1.5 * torch.randn(3, 3, 3, generator=generator, dtype=torch.float64)

    def run(self, ids, state=None):
        seen = torch.cat((torch.zeros_like(ids[:, :1]) if state is None else state, ids), dim=1)
        return self.table[seen[:, :-1], seen[:, 1:]], seen[:, -1:]


def surprise(ids, p):
    """Chi-square of what follows each pair of ids, against p (3,3,3), in standard deviations."""
    counts = torch.zeros(3, 3, 3, dtype=torch.float64)
    counts.index_put_((ids[:-2], ids[1:-1], ids[2:]), torch.ones(()).double(), accumulate=True)
    wanted = p * counts.sum(dim=-1, keepdim=True)
    likely = wanted > 5
    chi = ((counts - wanted) ** 2 / wanted)[likely].sum() + 1e9 * counts[p == 0].sum()
    free = likely.sum() - (likely.sum(dim=-1) > 0).sum()
    return ((chi - free) / (2 * free).clamp(min=1).sqrt()).item()


def surprise_of_speculating(setting, length=2_000):
    model, draft, start = ByTable(0), ByTable(1), torch.zeros(1, 1, dtype=torch.long)
    weigh = probabilities(**setting)
    ids = torch.cat(list(islice(speculate(model, draft, start, weigh, seed=0), length)))
    return surprise(ids, weigh(model.table))


@pytest.mark.parametrize(
    "setting", [{}, {"temperature": 0.5}, {"top_k": 2}, {"temperature": 2.0, "top_p": 0.8}], ids=str
)
def test_ids_have_the_chances_of_the_model_whatever_the_draft(setting):
    assert surprise_of_speculating(setting) < 4


def all_stand(guesses, p, q, generator):
    return torch.cat((guesses, sample._sample_ids(p[-1:], generator)))


def drawn_anew(guesses, p, q, generator):
    """Leaves out that what falls was likelier in q, so that the rest must be likelier here."""
    kept = len(RIGHT(guesses, p, q, generator)) - 1
    return torch.cat((guesses[:kept], sample._sample_ids(p[kept][None], generator)))


RIGHT = sample._accept_proposals


@pytest.mark.parametrize("wrong", [all_stand, drawn_anew])
def test_judging_wrongly_would_be_seen_in_the_chances(wrong, monkeypatch):
    monkeypatch.setattr(sample, "_accept_proposals", wrong)
    assert surprise_of_speculating({}) > 10


def test_speculating_stores_no_gradients_and_leaves_them_on_for_others():
    model = made(PATCHED)
    for _ in islice(
        speculate(model, model, torch.zeros(1, 3, dtype=torch.long), probabilities()), 3
    ):
        assert torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())


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
        ({"temperature": -1}, r"temperature must be 0 \(greedy\) or more, got -1"),
        ({"temperature": float("nan")}, r"temperature must be 0 \(greedy\) or more, got nan"),
        ({"top_k": 0}, "top_k must be a whole number, 1 or more, got 0"),
        ({"top_k": 2.5}, "top_k must be a whole number, 1 or more, got 2.5"),
        ({"top_p": 0.0}, "top_p must lie above 0 and at most at 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must lie above 0 and at most at 1, got 1.1"),
    ],
)
def test_a_sampler_that_cannot_draw_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        sampler(**setting)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused():
    message = "the tokenizer has 258 ids, the model 256; give the tokenizer that the model was"
    with pytest.raises(ValueError, match=message):
        generate(made(PATCHED), "x", 3, tokenizer=tokens.Bytes(specials=("<bos>", "<eos>")))


@pytest.mark.parametrize("penalty", [0, -1.5, float("nan")])
def test_a_penalty_that_is_not_above_0_is_refused(penalty):
    with pytest.raises(ValueError, match=f"a finite number above 0, got {penalty}; 1 changes"):
        penalize_repetition(greedy, penalty, torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("draft", "shape", "ahead", "message"),
    [
        (PATCHED.but(vocab_size=300), (1, 3), 4, "the draft has 300 ids, the model 256; a draft"),
        (PATCHED, (2, 3), 4, r"writes one row, of shape \(1, time\), got \(2, 3\)"),
        (PATCHED, (3,), 4, r"writes one row, of shape \(1, time\), got \(3,\)"),
        (PATCHED, (1, 3), 0, "speculate: ahead must be a whole number above 0, got 0"),
        (PATCHED, (1, 0), 4, "neither empty"),
    ],
)
def test_a_draft_that_cannot_guess_is_refused(draft, shape, ahead, message):
    prompt = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        next(speculate(made(PATCHED), made(draft), prompt, probabilities(), ahead))


# ---------------------------------------------------------------- the end of a context

LEARNED = ATTENTION.but(positions="learned", context=12)


def test_the_last_place_of_a_context_is_used_and_a_longer_prompt_refused():
    model, full = made(LEARNED), "a" * LEARNED.context
    prompts = [sample.encode_prompt(model, full[:length]) for length in (1, 11, 12)]
    assert [sample.positions_left(model, prompt, 99) for prompt in prompts] == [12, 2, 1]
    assert len(generate(model, full, 1)) == 1
    assert len(generate(model, "a", 12)) == 12
    with pytest.raises(ValueError, match=r"prompt has 13 ids, but the context .* has only 12"):
        sample.positions_left(model, sample.encode_prompt(model, full + "a"), 99)


@pytest.mark.parametrize("prompt", ["a", "a" * 10, "a" * 12])
@pytest.mark.parametrize("its_context", [12, 9, 40, None])
@pytest.mark.parametrize("ahead", [1, 5, 30])
def test_a_draft_guesses_up_to_the_end_of_the_context(prompt, its_context, ahead):
    model = made(LEARNED)
    its_spec = LEARNED.but(context=its_context) if its_context else ATTENTION
    for draft in (made(its_spec, seed=1), model):
        ids = sample.encode_prompt(model, prompt)
        length = sample.positions_left(model, ids, 99)
        wanted = list(islice(stream(model, ids, greedy), length))
        written = speculate(model, draft, ids, probabilities(0), ahead)
        assert list(islice(written, length)) == wanted
        assert len(wanted) == 13 - len(prompt)


# ---------------------------------------------------------------- numbers at their limits


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-30, 1e308, float("inf")])
def test_no_temperature_is_too_small_or_too_large(temperature):
    logits = torch.tensor([[3.0, -1e30, 3.5, 3e38], [1.0, 2.0, 0.0, -3e38]])
    found = probabilities(temperature)(logits)
    same(found.sum(dim=-1), torch.ones(2, dtype=torch.float64))
    assert temperature > 1 or found.argmax(dim=-1).tolist() == [3, 1]


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 1e-30, 1e300])
def test_no_penalty_is_too_small_or_too_large(penalty):
    pick = penalize_repetition(sampler(0.8, seed=0), penalty, torch.tensor([[0, 1, 2]]))
    for _ in range(5):
        assert 0 <= pick(torch.tensor([[1.0, -1.0, 0.0, 2.0]])).item() < 4


def test_numbers_beyond_those_of_torch_are_refused_or_have_no_effect():
    logits = torch.randn(2, 5)
    same(probabilities(top_k=10**30)(logits), probabilities()(logits))
    assert list(sample.take_first([1, 2], 10**30)) == [1, 2]
    for seed in (-1, 2**63, 10**30):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            sampler(seed=seed)
    for penalty in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="penalty must be a finite number above 0"):
            penalize_repetition(greedy, penalty, torch.zeros(1, 1))


def test_logits_that_are_no_numbers_are_refused_in_words():
    with pytest.raises(ValueError, match="the logits are not finite numbers"):
        sampler()(torch.tensor([[0.0, float("nan")]]))
