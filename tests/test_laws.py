"""Four laws for everything that mixes over time: pieces, causality, rows, memory.

Mixers, by a row of MIXING; models, by being a preset or a row of SPECS. All in float64. The
published QLLK has to break the second law, which proves that the law can be broken.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from helpers import BFLOAT16, TINY, built, same

from qllk.checks import build_part
from qllk.model import attention
from qllk.model.blocks import _NORMS_AT
from qllk.model.families import _FAMILIES, build
from qllk.model.layers import HEADS, MLPS, NORMS, join_heads
from qllk.model.masks import Mask
from qllk.model.mixers import MIXERS
from qllk.model.positions import POSITIONS, NoPositions
from qllk.model.recurrent import _DECAYS, NORMALISERS
from qllk.probes.inside import (
    attention_weights,
    state_numbers,
    state_rms,
    state_tensors,
    visibility,
)
from qllk.spec import Ngrams, Patch, Recall, Spec
from qllk.study.published import MELF, QLLK10, QLLK11

D = 16


def all_before(t):
    return set(range(t + 1))


def last(steps, sinks=0):
    """The last steps and the first ones."""
    return lambda t: {i for i in range(t + 1) if i > t - steps or i < sinks}


class Mixing(NamedTuple):
    """A mixer with its options, how many numbers its state may hold, and which steps it sees."""

    name: str
    options: dict
    numbers: Callable[[int], int]  # after T steps of one row
    sees: Callable[[int], set[int]] = all_before  # at step t
    positions: str = "none"


def constant(numbers):
    return lambda T: numbers


def cache(T):
    return 2 * D * T


def cumsum(**options):
    return Mixing("cumsum", options, constant(D))


def linear(heads, **options):
    return Mixing("linear", {"heads": heads, **options}, constant(D * D // heads))


def delta(heads, **options):
    return linear(heads, **options)._replace(name="delta")


def softmax(heads, positions="none", **options):
    return Mixing("softmax", {"heads": heads, **options}, cache, positions=positions)


def windowed(heads, window, sinks=0, positions="none"):
    def numbers(T):
        return 2 * D * min(T, window - 1 + sinks)

    options = {"heads": heads, "window": window, "sinks": sinks}
    return Mixing("softmax", options, numbers, last(window, sinks), positions)


def latent(heads, positions="none", **options):
    def numbers(T):
        return T * (widths["d_latent"] + widths["d_rope"])

    widths = {"d_latent": 6, "d_nope": 5, "d_rope": 4, "d_value": 3}
    return Mixing("latent", {"heads": heads, **widths, **options}, numbers, positions=positions)


def folded(size, inner):
    """Sees what is in complete folds, and the step itself."""

    def numbers(T):
        return (2 * size - 1) * D + (inner.numbers(T // size) if T // size else 0)

    def sees(t):
        return {*range((t + 1) // size * size), t}

    options = {"size": size, "mixer": (inner.name, inner.options)}
    return Mixing("folded", options, numbers, sees, inner.positions)


def conv(width):
    return Mixing("conv", {"width": width}, constant(D * (width - 1)), last(width))


def rwkv7(heads, rank):
    return Mixing("rwkv7", {"heads": heads, "rank": rank}, constant(D + D * D // heads))


def channel(name, **options):
    return Mixing(name, options, constant(D), last(2))


def grouped(heads, kv_heads, **options):
    numbers = 2 * D * kv_heads // heads
    return Mixing(
        "softmax",
        {"heads": heads, "kv_heads": kv_heads, **options},
        lambda T: numbers * T,
        positions="rotary",
    )


def linformer(heads, block, slots, positions="none"):
    def numbers(T):
        return 2 * D * (slots * (T // block) + T % block)

    options = {"heads": heads, "block": block, "slots": slots}
    return Mixing("linformer", options, numbers, positions=positions)


MIXING = {
    "cumsum": cumsum(),
    "cumsum, plain": cumsum(normaliser="none"),
    "cumsum, by count": cumsum(normaliser="count"),
    "cumsum, by root": cumsum(normaliser="root"),
    "cumsum, by rms": cumsum(normaliser="rms"),
    "cumsum, forgetting": cumsum(half_lives=(4, 64)),
    "cumsum, forgetting, plain": cumsum(half_lives=(2, 9), normaliser="none"),
    "softmax": softmax(4),
    "softmax, one head": softmax(1),
    "softmax, rotary": softmax(4, positions="rotary"),
    "softmax, with biases": softmax(2, bias=True),
    "softmax, window": windowed(2, 5),
    "softmax, window, rotary": windowed(2, 5, positions="rotary"),
    "softmax, window of one": windowed(2, 1),
    "softmax, window beyond the input": windowed(2, 99),
    "softmax, window and sinks": windowed(2, 5, sinks=3),
    "softmax, window and sinks, rotary": windowed(2, 5, sinks=1, positions="rotary"),
    "softmax, window of one and sinks": windowed(2, 1, sinks=2),
    "softmax, sinks beyond the input": windowed(2, 5, sinks=99),
    "softmax, in tiles": softmax(2, tile=4),
    "softmax, in tiles, rotary": softmax(1, tile=9, positions="rotary"),
    "latent": latent(3),
    "latent, rotary": latent(3, positions="rotary"),
    "latent, one head, layer norm": latent(1, positions="rotary", norm="layer"),
    "latent, compressed queries": latent(2, positions="rotary", d_query=7),
    "linear": linear(4),
    "linear, no decay": linear(4, decay="none"),
    "linear, fixed decay": linear(4, decay="fixed"),
    "linear, decay per head": linear(2, decay="head"),
    "linear, decay per channel": linear(2, decay="channel"),
    "delta": delta(4),
    "delta, decay per head": delta(2, decay="head"),
    "delta, decay per channel": delta(2, decay="channel"),
    "folded softmax": folded(4, softmax(2)),
    "folded softmax, rotary": folded(3, softmax(2, positions="rotary")),
    "folded by one": folded(1, cumsum()),
    "convolution": conv(4),
    "convolution of width one": conv(1),
    "rwkv-4": Mixing("rwkv4", {}, constant(3 * D)),
    "rwkv-4, channels": channel("rwkv4-channel"),
    "rwkv-4, channels, narrow": channel("rwkv4-channel", ratio=1.5),
    "rwkv-7": rwkv7(4, 5),
    "rwkv-7, one head": rwkv7(1, 2),
    "rwkv-7, channels": channel("rwkv7-channel"),
    "rwkv-7, channels, narrow": channel("rwkv7-channel", ratio=1),
    "softmax, one head of keys": grouped(4, 1),
    "softmax, two heads of keys": grouped(4, 2, bias=True),
    "linear Transformer": Mixing("linear-2020", {"heads": 4}, constant(D * (D // 4 + 1))),
    "linear Transformer, one head": Mixing("linear-2020", {"heads": 1}, constant(D * (D + 1))),
    "retention": Mixing("retention", {"heads": 4}, constant(2 * D * D // 4)),
    "retention, wide": Mixing("retention", {"heads": 2, "expand": 3}, constant(3 * D * D // 2)),
    "minGRU": Mixing("mingru", {}, constant(D)),
    "minGRU, wide": Mixing("mingru", {"expand": 1.5}, constant(D * 3 // 2)),
    "minLSTM": Mixing("minlstm", {}, constant(D)),
    "minLSTM, narrow": Mixing("minlstm", {"expand": 0.5}, constant(D // 2)),
    "Mamba": Mixing("mamba", {}, constant(2 * D * (16 + 3))),
    "Mamba, small": Mixing(
        "mamba", {"states": 2, "expand": 1, "width": 1, "rank": 3}, constant(2 * D)
    ),
    "Mamba-2": Mixing("mamba2", {"heads": 4}, constant(2 * D * 64 + 3 * (2 * D + 128))),
    "Mamba-2, small": Mixing(
        "mamba2",
        {"heads": 1, "states": 3, "expand": 1, "width": 2},
        constant(D * 3 + D + 2 * 3),
    ),
    "Linformer": linformer(4, 5, 2),
    "Linformer, rotary": linformer(2, 4, 4, positions="rotary"),
    "Linformer, blocks of one": linformer(1, 1, 1),
    "Linformer, blocks beyond the input": linformer(2, 99, 3),
}

CONV, CUMSUM = ("conv", {"width": 3}), ("cumsum", {})
SOFTMAX, LINEAR = ("softmax", {"heads": 2}), ("linear", {"heads": 2, "decay": "channel"})
WINDOW = ("softmax", {"heads": 2, "window": 5})
RELATIVE = ("relative", {"heads": 2, "buckets": 8, "distance": 20})
FORGETTING = ("cumsum", {"half_lives": (2, 32)})
SINKS = ("softmax", {"heads": 2, "window": 5, "sinks": 2})
LATENT = ("latent", {"heads": 2, "d_latent": 6, "d_nope": 5, "d_rope": 4, "d_value": 3})
DELTA = ("delta", {"heads": 2, "decay": "head"})
FOLDED = ("folded", {"size": 3, "mixer": DELTA})


def patched(size, slow, after=1, layers=3, fast=(CONV,), **fields):
    patch = Patch(size=size, d_model=24, layers=2, mixers=slow, after=after)
    return Spec(d_model=D, layers=layers, mixers=fast, patch=patch, **fields)


SPECS = {
    "hybrid": Spec(d_model=D, layers=5, mixers=(CONV, CUMSUM, LINEAR, WINDOW, SOFTMAX)),
    "sinks and latents": Spec(d_model=D, layers=3, mixers=(SINKS, LATENT), positions="rotary"),
    "delta and folds": Spec(d_model=D, layers=2, mixers=(DELTA, FOLDED)),
    "learned positions": Spec(
        d_model=D, layers=2, mixers=(SOFTMAX,), positions="learned", context=80
    ),
    "sinusoidal positions": Spec(d_model=D, layers=2, mixers=(SOFTMAX,), positions="sinusoidal"),
    "rotary positions": Spec(d_model=D, layers=2, mixers=(WINDOW, SOFTMAX), positions="rotary"),
    "layer norm, squared relu": Spec(
        d_model=D, layers=2, mixers=(FORGETTING,), norm="layer", mlp=("relu2", {"ratio": 2})
    ),
    "tied": Spec(d_model=D, layers=2, mixers=(CUMSUM, CONV), tied=True),
    "patches of 1": patched(1, (CUMSUM,)),
    "patches of 3": patched(3, (CUMSUM, LINEAR)),
    "patches of 8": patched(8, (FORGETTING,)),
    "patches of 3, nothing after": patched(3, (LINEAR,), after=0),
    "patches of 3, rotary cache": patched(3, (SOFTMAX,), after=2, positions="rotary"),
    "patches of 3, window": patched(3, (WINDOW,), fast=(WINDOW, CONV), positions="rotary"),
    "patches of 3, relative positions": patched(3, (SOFTMAX,), positions=RELATIVE, fast=(WINDOW,)),
    "patches of 3, learned positions": patched(
        3, (CUMSUM,), positions="learned", context=80, fast=(CUMSUM,)
    ),
}
# The parts that act on each position alone, two or three to a row.
SPECS |= {
    f"{norm}, {mlp}, {head}, {at}": Spec(
        d_model=D,
        layers=2,
        mixers=(SOFTMAX, CUMSUM),
        norm=norm,
        mlp=(mlp, {}),
        head=head,
        norm_at=at,
    )
    for norm, mlp, head, at in (
        ("layer", "gelu", "linear", "post"),
        ("none", "gelu-exact", "masked", "sublayer"),
        ("rms", "relu", "linear", "sublayer"),
        ("tanh", "swiglu", "masked", "post"),
        ("rms", "relu2", "pooled", "pre"),
    )
}
# Blocks without an MLP, wherever their norms stand.
SPECS |= {
    f"no mlp, {at}": Spec(
        d_model=D, layers=3, mixers=(SOFTMAX, ("rwkv4-channel", {})), mlp=("none", {}), norm_at=at
    )
    for at in _NORMS_AT
}
SPECS |= {
    f"{family}, {positions}": Spec(
        d_model=D,
        layers=2,
        mixers=(SOFTMAX,),
        positions=RELATIVE if positions == "relative" else positions,
        context=80,
        family=family,
        cross=SOFTMAX if family == "encoder-decoder" else None,
    )
    for family in ("encoder", "encoder-decoder")
    for positions in POSITIONS
}
SPECS |= {
    f"{family}, no mlp": SPECS[f"{family}, rotary"].but(mlp=("none", {}))
    for family in ("encoder", "encoder-decoder")
}
CONTEXTS = (1, 2, 5, "word", "words-2", "words-3")
NGRAMS, RECALL = Ngrams(CONTEXTS, rows=64), Recall(CONTEXTS, addresses=16, rows=64)
SPECS |= {
    "n-grams": Spec(d_model=D, layers=2, mixers=(CONV,), ngrams=NGRAMS),
    "recall": Spec(d_model=D, layers=2, mixers=(CONV,), recall=RECALL),
    "n-grams, recall and attention": Spec(
        d_model=D, layers=2, mixers=(SOFTMAX,), ngrams=NGRAMS, recall=RECALL
    ),
    "recall and patches": patched(3, (CUMSUM,)).but(recall=RECALL),
}
# The blocks of the other families, wherever their norms stand.
SPECS |= {
    f"{family}, {at}": SPECS[f"{family}, rotary"].but(norm_at=at)
    for family in ("encoder", "encoder-decoder")
    for at in _NORMS_AT
}
MODELS = {**{f"preset {name}": spec for name, spec in TINY.items()}, **SPECS}
ENCODERS = {name: spec for name, spec in MODELS.items() if spec.family == "encoder"}
CAUSAL = {name: spec for name, spec in MODELS.items() if spec.family != "encoder"}
PUBLISHED = {"QLLK 1.0": QLLK10, "QLLK 1.1": QLLK11, "MELF": MELF}

T = 67  # past the default chunks of every kernel
CUTS = {"one by one": (1,) * T, "all but one": (T - 1, 1), "one, rest": (1, T - 1)} | {
    "ragged": (13, 1, 35, 18)
}
SHORT = 29  # for models: odd, and no multiple of any patch but 1
SHORT_CUTS = {"one by one": (1,) * SHORT, "all but one": (SHORT - 1, 1), "ragged": (1, 10, 2, 16)}

each_mixing = pytest.mark.parametrize("row", MIXING.values(), ids=MIXING)
each_model = pytest.mark.parametrize("spec", CAUSAL.values(), ids=CAUSAL)
each_encoder = pytest.mark.parametrize("spec", ENCODERS.values(), ids=ENCODERS)
each_published = pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)


def mixer_of(row):
    positions = POSITIONS[row.positions](D)
    return build_part(MIXERS, (row.name, row.options), "mixer", (D, positions)).double()


def model_of(spec):
    return built(spec).double()


def vectors(B=1, T=T):
    return torch.randn(B, T, D, dtype=torch.float64)


def random_ids(spec, B=1, T=SHORT):
    """Few different ones for a recall, so that its contexts come back."""
    return torch.randint(2 if spec.recall else spec.vocab_size, (B, T))


def in_pieces(step, x, cuts):
    state, ys = None, []
    for piece in x.split(cuts, dim=1):
        y, state = step(piece, state)
        ys.append(y)
    return torch.cat(ys, dim=1), state


# ---------------------------------------------------------------- pieces


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@each_mixing
def test_mixer_in_pieces_equals_whole(row, cuts):
    mixer, x = mixer_of(row), vectors(B=2)
    y, state = in_pieces(mixer, x, cuts)
    whole, after = mixer(x)
    same(y, whole)
    same(state, after)


@pytest.mark.parametrize("cuts", SHORT_CUTS.values(), ids=SHORT_CUTS)
@each_model
def test_model_in_pieces_equals_whole(spec, cuts):
    model, ids = model_of(spec), random_ids(spec, B=2)
    logits, state = in_pieces(model.run, ids, cuts)
    same(logits, model(ids))
    assert state.t == SHORT
    next_ids = random_ids(spec, B=2, T=9)  # the state that is left serves as well as the whole's
    same(model.run(next_ids, state)[0], model(torch.cat((ids, next_ids), dim=1))[:, SHORT:])


def check_the_old_state_stays_valid(step, first, second):
    _, state = step(first, None)
    before = [tensor.clone() for tensor in state_tensors(state)]
    y, _ = step(second, state)
    step(second.flip(1), state)
    same(state_tensors(state), before, atol=0)
    same(step(second, state)[0], y, atol=0)


@each_mixing
def test_mixer_leaves_the_old_state_valid(row):
    check_the_old_state_stays_valid(mixer_of(row), vectors(T=7), vectors(T=4))


@each_model
def test_model_leaves_the_old_state_valid(spec):
    ids = random_ids(spec)
    check_the_old_state_stays_valid(model_of(spec).run, ids[:, :10], ids[:, 10:])


# ---------------------------------------------------------------- causality


@each_mixing
def test_mixer_sees_the_past_as_far_as_it_reaches_and_never_the_future(row):
    mixer, x, t = mixer_of(row), vectors().requires_grad_(), 40
    y, _ = mixer(x)
    seen = (torch.autograd.grad(y[0, t].sum(), x)[0][0] != 0).any(dim=-1)
    assert set(seen.nonzero().flatten().tolist()) == row.sees(t)


@each_mixing
def test_changing_a_mixers_input_changes_nothing_before(row):
    mixer, x, t = mixer_of(row), vectors(), 40
    changed = x.clone()
    changed[:, t:] = vectors(T=T - t)
    before, after = mixer(x)[0], mixer(changed)[0]
    same(after[:, :t], before[:, :t])
    assert not torch.allclose(after[:, t], before[:, t])


def check_causality(model, T):
    seen = visibility(model, T)
    assert not seen.triu(1).any(), f"positions see the future:\n{seen.int()}"
    assert seen.diagonal().all(), "a position does not see its own byte"


@each_model
def test_model_sees_its_own_byte_and_never_the_future(spec):
    check_causality(model_of(spec), SHORT)


@each_model
def test_changing_a_byte_changes_no_logits_before(spec):
    model, ids = model_of(spec), random_ids(spec)
    for t in (1, 8, 9, SHORT - 1):
        changed = ids.clone()
        changed[:, t:] = (changed[:, t:] + 1) % spec.vocab_size
        before, after = model(ids), model(changed)
        same(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_first_byte_reaches_as_far_as_the_patches_carry_it(size):
    spec = patched(size, (CUMSUM,), fast=(("conv", {"width": 1}),))  # byte layers that see one byte
    seen = visibility(model_of(spec), SHORT)
    for t in range(SHORT):
        complete = (t + 1) // size * size  # bytes in patches that end at or before t
        expected = sorted({*range(complete), t})
        assert seen[t].nonzero().flatten().tolist() == expected


@each_encoder
def test_every_position_of_an_encoder_sees_the_past_and_the_future(spec):
    assert visibility(model_of(spec), SHORT).all()


def test_every_position_of_a_decoder_sees_all_that_its_encoder_read():
    model = built(SPECS["encoder-decoder, none"]).model.double()
    x, ids = torch.randn(1, 5, D, dtype=torch.float64, requires_grad=True), torch.zeros(1, 7).long()
    model.embed.register_forward_hook(lambda embed, args, y: x if args[0].shape[1] == 5 else y)
    for t, logits in enumerate(model(ids[:, :5], ids)[0]):
        seen = torch.autograd.grad(logits.sum(), x, retain_graph=True)[0]
        assert (seen[0] != 0).any(dim=-1).all(), t


@each_published
def test_the_published_models_fail_causality(published):
    with pytest.raises(AssertionError, match="see the future"):
        check_causality(published(dim=16, n_layers=1).double(), 32)


@pytest.mark.parametrize(("name", "leaks"), [("QLLK 1.0", 28), ("QLLK 1.1", 28), ("MELF", 31)])
def test_how_many_of_31_published_positions_see_their_own_target(name, leaks):
    seen = visibility(PUBLISHED[name](dim=16, n_layers=1).double(), 32)
    targets = seen.diagonal(1)  # position t predicts byte t + 1
    assert int(targets.sum()) == leaks
    if leaks == 28:
        assert (~targets).nonzero().flatten().tolist() == [7, 15, 23]  # the last byte of a patch


def test_changing_a_byte_changes_published_logits_before():
    model, ids = QLLK10(dim=16, n_layers=1), torch.randint(256, (1, 16))
    changed = ids.clone()
    changed[0, 7] ^= 1
    assert not torch.allclose(model(changed)[0, 0], model(ids)[0, 0])


# ---------------------------------------------------------------- rows


@each_mixing
def test_a_row_of_a_batch_equals_that_row_alone(row):
    mixer, x = mixer_of(row), vectors(B=3)
    first, state = mixer(x[:, :30])
    second, _ = mixer(x[:, 30:], state)
    for i in range(3):
        alone, after = mixer(x[i : i + 1, :30])
        same(first[i : i + 1], alone)
        same(second[i : i + 1], mixer(x[i : i + 1, 30:], after)[0])


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_a_row_of_ids_equals_that_row_alone(spec):
    model, ids = model_of(spec), random_ids(spec, B=3)
    logits = model(ids)
    for i in range(3):
        same(logits[i : i + 1], model(ids[i : i + 1]))


@each_published
def test_a_row_of_ids_equals_that_row_alone_in_the_published_models(published):
    model, ids = published(dim=16, n_layers=1).double().eval(), torch.randint(256, (3, 32))
    same(model(ids)[1:2], model(ids[1:2]))


# ---------------------------------------------------------------- documents and padding


OWNERS = torch.tensor([[0] * 10 + [1] + [2] * 12 + [-1] * 6, [7] * SHORT])


MASKED = {"softmax", "latent"}


def obeys_a_mask(part):
    name, options = part
    return name in MASKED and not options.get("sinks") and not options.get("tile")


def each(specs):
    return pytest.mark.parametrize("spec", specs.values(), ids=specs)


ONE_TEXT = {name: spec for name, spec in MODELS.items() if spec.family != "encoder-decoder"}
MASKABLE = {
    name: spec
    for name, spec in ONE_TEXT.items()
    if not (spec.patch or spec.ngrams or spec.recall) and all(map(obeys_a_mask, spec.mixers))
}
LEAKY = {name: spec for name, spec in ONE_TEXT.items() if name not in MASKABLE}
DISTANCES = {
    name: spec
    for name, spec in MASKABLE.items()
    if spec.positions[0] not in ("learned", "sinusoidal")
}
READERS = {name: spec for name, spec in MODELS.items() if spec.family == "encoder-decoder"}


@each_mixing
def test_a_mixer_given_documents_reads_each_as_if_alone_or_refuses(row):
    mixer, x, mask = mixer_of(row), vectors(B=2, T=SHORT), Mask(documents=OWNERS)
    if not obeys_a_mask(row[:2]):
        with pytest.raises(ValueError, match=r"cannot be masked"):
            mixer(x, None, mask)
        return
    y, _ = mixer(x, None, mask)
    for i, owners in enumerate(OWNERS):
        for owner in owners.unique():
            own = owners == owner
            same(y[i : i + 1, own], mixer(x[i : i + 1, own])[0])


@each_mixing
def test_a_mixer_given_padding_never_reads_it_or_refuses(row):
    mixer, x = mixer_of(row), vectors(B=2, T=SHORT)
    mask = Mask(text=torch.arange(SHORT) < torch.tensor([[SHORT], [17]]))
    if not obeys_a_mask(row[:2]):
        with pytest.raises(ValueError, match=r"cannot be masked"):
            mixer(x, None, mask)
        return
    y, _ = mixer(x, None, mask)
    changed = torch.where(mask.text[..., None], x, vectors(B=2, T=SHORT))
    same(mixer(changed, None, mask)[0][mask.text], y[mask.text])
    same(y[1:, :17], mixer(x[1:, :17])[0])


@each_mixing
def test_a_mixer_takes_a_mask_that_hides_nothing_but_the_future(row):
    mixer, x = mixer_of(row), vectors(B=2, T=SHORT)
    y, state = mixer(x[:, :20])
    same(mixer(x[:, :20], None, Mask()), (y, state), atol=0)
    same(mixer(x[:, 20:], state, Mask()), mixer(x[:, 20:], state, None), atol=0)


@pytest.mark.parametrize(
    "row", [row for row in MIXING.values() if obeys_a_mask(row[:2]) and "window" not in row.options]
)
def test_documents_continue_from_a_state_that_keeps_all_keys(row):
    mixer, x = mixer_of(row), vectors(B=2, T=SHORT)
    whole, _ = mixer(x, None, Mask(documents=OWNERS))
    first, state = mixer(x[:, :12], None, Mask(documents=OWNERS[:, :12]))
    second, _ = mixer(x[:, 12:], state, Mask(documents=OWNERS))
    same(torch.cat((first, second), dim=1), whole)
    with pytest.raises(ValueError, match=rf"documents must have a value for each of the {SHORT}"):
        mixer(x[:, 12:], state, Mask(documents=OWNERS[:, 12:]))


@each(DISTANCES)
def test_a_packed_row_equals_its_documents_alone(spec):
    model, ids = model_of(spec), random_ids(spec, B=2)
    logits = model(ids, documents=OWNERS)
    for i, owners in enumerate(OWNERS):
        for owner in owners.unique():
            own = owners == owner
            same(logits[i : i + 1, own], model(ids[i : i + 1, own]))
    assert not torch.allclose(logits[0, 10:], model(ids)[0, 10:])  # the mask was needed


@each(MASKABLE)
def test_changing_a_document_changes_nothing_outside_of_it(spec):
    model, ids = model_of(spec), random_ids(spec, B=2)
    for owner in OWNERS[0].unique():
        own = owner == OWNERS
        changed = torch.where(own, (ids + 1) % spec.vocab_size, ids)
        before, after = model(ids, documents=OWNERS), model(changed, documents=OWNERS)
        same(after[~own], before[~own])
        assert not torch.allclose(after[own], before[own])


@each(MASKABLE)
def test_a_padded_row_equals_the_row_alone(spec):
    model, ids = model_of(spec), random_ids(spec)
    text = torch.arange(SHORT)[None] < 17
    logits = model(ids, documents=text)
    same(logits[:, :17], model(ids[:, :17]))
    assert logits.isfinite().all()
    same(model(ids, documents=torch.ones_like(text)), model(ids))


@each(LEAKY)
def test_a_model_that_would_carry_one_document_into_the_next_refuses_them(spec):
    with pytest.raises(ValueError, match=r"carry one document .* into the next|sinks=2, tile"):
        model_of(spec)(random_ids(spec, B=2), OWNERS)


@each(READERS)
def test_a_decoder_and_its_encoder_see_no_padding_of_the_source(spec):
    model = model_of(spec).model
    source, ids = random_ids(spec, B=2, T=11), random_ids(spec, B=2)
    text = torch.arange(11) < torch.tensor([[11], [6]])
    logits = model(source, ids, text)
    same(logits[1:], model(source[1:, :6], ids[1:]))
    same(logits[:1], model(source[:1], ids[:1]))
    other = torch.where(text, source, (source + 1) % spec.vocab_size)
    same(model(other, ids, text), logits)
    assert not torch.allclose(model(other, ids), model(source, ids))
    pieces, _ = in_pieces(
        lambda x, state: model.run(x, state or model.encode(source, text)), ids, (1, 10, 18)
    )
    same(pieces, logits)  # the state remembers what is text


@each({"softmax": SPECS["rotary positions"], "latent": SPECS["hybrid"].but(mixers=(LATENT,))})
def test_gradients_flow_inside_a_document_and_no_further(spec):
    model = model_of(spec)
    leaf = []
    model.embed.register_forward_hook(
        lambda embed, args, x: leaf.append(x.detach().requires_grad_()) or leaf[0]
    )
    logits = model(random_ids(spec, B=2), OWNERS)
    gradient = torch.autograd.grad(logits[0, 22].sum(), leaf[0])[0]  # the last of the third
    reached = (gradient != 0).any(dim=-1)
    assert set(reached[0].nonzero().flatten().tolist()) <= set(range(11, 23))
    assert reached[0, 18:23].all()
    assert not reached[1].any()


# ---------------------------------------------------------------- memory


@each_mixing
def test_a_mixers_state_holds_the_numbers_it_says(row):
    mixer = mixer_of(row)
    for length in (1, 2, 5, 16, T):
        _, state = mixer(vectors(T=length))
        assert state_numbers(state) == row.numbers(length)
        _, state = mixer(vectors(T=1), state)
        assert state_numbers(state) == row.numbers(length + 1)


def growth(spec, lengths):
    model = built(spec)
    return [state_numbers(model.run(random_ids(spec, T=length))[1]) for length in lengths]


def forgets(part):
    """Whether the part's state is bounded."""
    name, options = part
    if name == "folded":
        return forgets(options["mixer"])
    return name not in ("softmax", "latent", "linformer") or options.get("window") is not None


@each_model
def test_a_models_state_grows_only_if_it_caches(spec):
    slow = spec.patch.mixers if spec.patch else ()
    short, long, longer = growth(spec, (24, 48, 72))  # past every window and patch of the rows
    if all(map(forgets, (*spec.mixers, *slow))):
        assert short == long == longer
    else:
        assert longer - long == long - short > 0


def test_a_cache_on_patches_grows_once_a_patch():
    spec = patched(8, (SOFTMAX,))
    start, almost, full = growth(spec, (24, 31, 32))
    assert start == almost
    assert full - start == 2 * spec.patch.layers * spec.patch.d_model


def test_a_batch_holds_a_state_for_each_row():
    model = built(MODELS["hybrid"])
    one, three = (model.run(random_ids(model.spec, B=B))[1] for B in (1, 3))
    assert state_numbers(three) == 3 * state_numbers(one)


# ---------------------------------------------------------------- other devices and precisions


@each_mixing
def test_a_mixer_can_be_counted_without_being_computed(row):
    mixer, x = mixer_of(row).to("meta"), torch.empty(2, 9, D, dtype=torch.float64, device="meta")
    y, state = mixer(x)
    assert mixer(y, state)[0].shape == x.shape


@BFLOAT16
@each_mixing
def test_a_mixer_in_half_precision_is_close_to_itself(row):
    mixer, x = mixer_of(row).float(), vectors(B=2, T=40).float()
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x[:, :30])
        rest, _ = mixer(x[:, 30:], state)
    (y.float().sum() + rest.float().sum()).backward()
    found = torch.cat((y, rest), dim=1).float()
    same(found, mixer(x)[0], atol=0.05)
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


# ---------------------------------------------------------------- weights of attention


ATTENDING = {
    name: row for name, row in MIXING.items() if issubclass(MIXERS[row.name], attention.Attention)
}
each_attending = pytest.mark.parametrize("row", ATTENDING.values(), ids=ATTENDING)


@each_attending
def test_weights_of_attention_are_shares_of_exactly_what_is_seen(row):
    mixer, x = mixer_of(row), vectors(B=2, T=SHORT)
    weights = mixer.weights(x)
    same(weights.sum(dim=-1), torch.ones(2, mixer.heads, SHORT).double())
    for t in range(SHORT):
        seen = [{i for i, share in enumerate(head[t].tolist()) if share} for head in weights[0]]
        assert seen == [row.sees(t)] * mixer.heads


@each_attending
def test_weights_of_attention_are_those_that_made_the_output(row):
    mixer, x = mixer_of(row), vectors(B=2, T=SHORT)
    _, state = mixer(x[:, :9])
    for inputs in ((x,), (x[:, 9:], state)):
        o = mixer.weights(*inputs) @ values_of(mixer, *inputs)
        same(mixer.out(join_heads(o)), mixer(*inputs)[0])


@pytest.mark.parametrize("row", [row for row in ATTENDING.values() if obeys_a_mask(row[:2])])
def test_weights_of_attention_obey_a_mask(row):
    mixer, x, mask = mixer_of(row), vectors(B=2, T=SHORT), Mask(documents=OWNERS)
    weights = mixer.weights(x, None, mask)
    assert not weights[~mask.table(SHORT, SHORT).expand_as(weights)].any()
    o = weights @ values_of(mixer, x)
    same(mixer.out(join_heads(o)), mixer(x, None, mask)[0])


def values_of(mixer, x, state=None):
    if isinstance(mixer, attention.LatentAttention):
        _, c, _ = mixer.project_latent(x, state)
        return c[:, None] @ mixer.split_up()[1].transpose(1, 2)
    return mixer.share(mixer.project_qkv(x, state)[2])


def test_mixers_with_weights_are_those_that_obey_a_mask():
    assert {row.name for row in ATTENDING.values()} == MASKED


@each({name: spec for name, spec in MODELS.items() if name.startswith("preset")})
def test_every_attention_of_a_preset_shows_its_weights(spec):
    model, ids = build(spec, seed=0).double(), random_ids(spec, B=2)
    found = attention_weights(model, ids)
    expected = {name for name, module in model.named_modules() if hasattr(module, "weights")}
    assert found.keys() == expected
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    for name, weights in found.items():
        same(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))
        future = weights.triu(1).any().item()
        assert future == (".cross" in name or "encoder" in name), name


# ---------------------------------------------------------------- the probes and the rows above


@each_mixing
def test_a_layers_memory_is_named_after_its_mixer(row):
    part = (row.name, row.options)
    model, inner = build(Spec(d_model=D, layers=2, mixers=(part,))), row.options.get("mixer")
    names = list(state_rms(model.run(random_ids(model.spec, T=9))[1]))
    clock, name = ("patch", inner[0]) if inner else ("byte", row.name)
    assert names == [f"{clock} 1 {name}", f"{clock} 2 {name}"]


def test_every_mixer_and_every_option_has_a_row():
    assert {row.name for row in MIXING.values()} == set(MIXERS)
    for name, cls in MIXERS.items():
        known = {
            p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY
        }
        rows = [row.options for row in MIXING.values() if row.name == name]
        assert known == {option for options in rows for option in options}, name


@pytest.mark.parametrize(("option", "table"), [("normaliser", NORMALISERS), ("decay", _DECAYS)])
def test_every_choice_of_an_option_has_a_row(option, table):
    assert {r.options[option] for r in MIXING.values() if option in r.options} == set(table)


def test_all_mixers_have_one_signature_and_attention_obeys_a_mask():
    for cls in MIXERS.values():
        parameters = inspect.signature(cls.forward).parameters
        assert list(parameters) == ["self", "x", "state", "mask"]
        assert parameters["state"].default is parameters["mask"].default is None
    assert {row.name for row in MIXING.values() if obeys_a_mask(row[:2])} == MASKED


def test_every_kind_of_positions_has_a_row():
    assert {spec.positions[0] for spec in SPECS.values()} == set(POSITIONS)
    rotating = {name for name, cls in POSITIONS.items() if cls.rotate is not NoPositions.rotate}
    assert rotating <= {row.positions for row in MIXING.values()}


@pytest.mark.parametrize(
    ("field", "table"),
    [
        ("norm", NORMS),
        ("mlp", MLPS),
        ("head", HEADS),
        ("norm_at", _NORMS_AT),
        ("family", _FAMILIES),
    ],
)
def test_every_choice_of_a_field_has_a_row(field, table):
    found = [getattr(spec, field) for spec in SPECS.values()]
    assert {part if isinstance(part, str) else part[0] for part in found} == set(table)
