"""Whole models: what they refuse, how they start, that they learn, and that they stream."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, built, same

from qllk.model import families
from qllk.model.blocks import Stack
from qllk.model.families import (
    _FAMILIES,
    LanguageModel,
    PatchedStack,
    build,
    count_parameters,
    eval_mode,
)
from qllk.model.layers import MLPS, LinearHead, ResidualLinear
from qllk.model.positions import POSITIONS
from qllk.presets import PRESETS
from qllk.spec import Patch, Spec
from qllk.training.optim import build_optimizer

# Every preset's size, as its source or our own README states it.
PARAMETERS = {
    "qllk-3": 38_890_048,
    "qllk-3-nano": 3_702_048,
    "qllk-2": 1_298_944,
    "qllk-2-nano": 342_272,
    "qllk-2-local": 610_176,
    "gpt": 1_312_160,
    "gpt-nano": 229_952,
    "gpt2": 124_439_808,
    "gpt2-nano": 281_984,
    "bert-base": 109_514_298,
    "bert-nano": 237_569,
    "t5-base": 222_903_552,
    "t5-nano": 253_120,
    "swa-mla-small": 158_352_896,
    "swa-mla-small-as-coded": 262_516_736,
    "swa-mla-base": 982_981_632,
    "swa-mla-large": 1_940_808_192,
    "swa-mla-xl": 8_578_479_104,
    "swa-mla-nano": 211_456,
    "randygpt-0.1": 13_184,
    "randygpt-0.3": 811_776,
    "randygpt-nano": 294_912,
    "local-code-model": 136_832,
    "local-code-model-nano": 197_888,
    "rwkv4-nano": 231_744,
    "rwkv7-nano": 258_112,
    "linear-2020-nano": 229_952,
    "retnet-nano": 229_952,
    "mingru-nano": 238_144,
    "minlstm-nano": 229_952,
    "mamba-nano": 240_256,
    "mamba2-nano": 243_476,
    "linformer-nano": 234_048,
    "gqa-nano": 213_568,
    "delta-nano": 247_496,
}
CONV = ("conv", {"width": 3})
SOFTMAX = ("softmax", {"heads": 2})
BASE = Spec(d_model=16, layers=2, mixers=(CONV,))
ENCODER = BASE.but(mixers=(SOFTMAX,), family="encoder")
SEQ2SEQ = BASE.but(mixers=(SOFTMAX,), family="encoder-decoder", cross=SOFTMAX)

each_preset = pytest.mark.parametrize("name", PRESETS)


def refused(match, spec=BASE, **changes):
    with pytest.raises(ValueError, match=match):
        build(spec.but(**changes))


# ---------------------------------------------------------------- presets


@each_preset
def test_a_preset_has_the_parameters_it_states(name):
    with torch.device("meta"):
        assert count_parameters(build(name)) == PARAMETERS[name]


def test_every_preset_states_its_parameters_and_none_that_is_gone():
    assert set(PARAMETERS) == set(PRESETS)


@each_preset
def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone(name):
    before = torch.get_rng_state()
    one, two = build(TINY[name], seed=1), build(TINY[name], seed=1)
    same(torch.get_rng_state(), before, atol=0)
    same(dict(one.state_dict()), dict(two.state_dict()), atol=0)
    other = build(TINY[name], seed=2)
    assert not torch.equal(other.embed.weight, one.embed.weight)


def test_without_a_seed_the_global_generator_decides():
    torch.manual_seed(5)
    one, two = build(BASE), build(BASE)
    torch.manual_seed(5)
    assert not torch.equal(one.embed.weight, two.embed.weight)
    same(build(BASE).embed.weight, one.embed.weight, atol=0)


def test_a_name_builds_the_preset():
    name = min(PARAMETERS, key=PARAMETERS.get)
    assert build(name, seed=0).spec == PRESETS[name]


@each_preset
def test_the_first_loss_is_that_of_a_uniform_guess(name):
    model = built(TINY[name])
    ids = torch.randint(model.spec.vocab_size, (8, 33))
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - math.log(model.spec.vocab_size)) < 0.15


@each_preset
def test_a_preset_can_learn_one_batch_by_heart(name):
    model = built(TINY[name])
    ids = torch.randint(model.spec.vocab_size, (2, 17))
    optimizer = build_optimizer("adamw", model, lr=0.03, weight_decay=0.0)
    for _ in range(60):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


def idle_parameters(spec):
    model = built(spec)
    ids = torch.randint(2 if spec.recall else spec.vocab_size, (2, 17))  # contexts that come back
    model(ids).square().mean().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return [name for name, grad in grads.items() if grad is None or not grad.to_dense().any()]


@each_preset
def test_every_parameter_of_a_preset_is_used(name):
    assert not idle_parameters(TINY[name])


@pytest.mark.parametrize("positions", POSITIONS)
def test_every_parameter_of_positions_is_used_beside_patches(positions):
    if positions == "relative":
        positions = ("relative", {"heads": 2, "buckets": 4, "distance": 5})
    patch = Patch(size=3, d_model=8, layers=1, mixers=(("softmax", {"heads": 2}),))
    assert not idle_parameters(BASE.but(patch=patch, positions=positions, context=20))


@pytest.mark.parametrize("name", [n for n, spec in PRESETS.items() if spec.family != "encoder"])
def test_streaming_byte_by_byte_equals_the_whole_in_single_precision(name):
    model = built(TINY[name])
    ids, state = torch.randint(model.spec.vocab_size, (2, 33)), None
    whole = model(ids)
    for t in range(33):
        logits, state = model.run(ids[:, t : t + 1], state)
        same(logits[:, 0], whole[:, t], atol=1e-4)
        assert state.t == t + 1


# ---------------------------------------------------------------- names and options


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="unknown preset 'nonsense'") as error:
        build("nonsense")
    assert all(name in str(error.value) for name in PRESETS)


def test_unknown_parts_list_the_known():
    refused("unknown mixer 'sofmax'; choose from .*softmax", mixers=(("sofmax", {}),))
    refused("unknown mlp 'gelu2'; choose from .*gelu, ", mlp=("gelu2", {}))
    refused("unknown norm 'batch'; choose from .*layer, .*rms", norm="batch")
    refused("unknown positions 'rotory'; choose from .*rotary", positions="rotory")
    refused("unknown normaliser 'max'; .*rms", mixers=(("cumsum", {"normaliser": "max"}),))
    refused("unknown decay 'slow'; .*head", mixers=(("linear", {"heads": 2, "decay": "slow"}),))


def test_unknown_parts_of_other_families_list_the_known():
    refused("unknown family 'encodre'; choose from .*encoder-decoder", family="encodre")
    refused("unknown head 'big'; choose from .*masked", head="big")
    refused("unknown norm_at 'middle'; choose from .*post, pre, sublayer", norm_at="middle")
    refused("unknown norm 'batch'; ", norm_in="batch")
    refused("unknown norm 'batch'; ", norm_out="batch")
    refused("unknown mixer 'conv'; choose from linformer, softmax", ENCODER, mixers=(CONV,))
    refused("unknown cross 'conv'; choose from softmax", SEQ2SEQ, cross=CONV)
    refused("unknown norm_at 'last'; choose from post, pre, sub", SEQ2SEQ, norm_at="last")


def test_unknown_parts_of_the_patch_path_list_the_known():
    slow = Patch(size=2, d_model=8, layers=1, mixers=(("cumsun", {}),))
    refused("unknown mixer 'cumsun'; choose from .*cumsum", patch=slow)


def test_an_unknown_or_missing_option_names_the_part():
    refused("mixer 'conv': .*'widht'", mixers=(("conv", {"widht": 3}),))
    refused("mixer 'conv': .*'width'", mixers=(("conv", {}),))
    refused("mlp 'gelu': .*'wide'", mlp=("gelu", {"wide": 3}))
    refused("norm 'layer': .*'epz'", norm=("layer", {"epz": 1e-5}))
    refused("positions 'relative': .*'heads'", positions="relative")


def test_heads_must_divide_the_width():
    refused("heads=3 must divide d_model=16", mixers=(("softmax", {"heads": 3}),))
    whole = "heads must be a whole number above 0, got "
    refused(whole + "0", mixers=(("linear", {"heads": 0}),))
    refused(whole + "2.0", mixers=(("softmax", {"heads": 2.0}),))
    refused(whole + "2.0", ENCODER, mixers=(("softmax", {"heads": 2.0}),))
    refused(whole + "2.0", SEQ2SEQ, cross=("softmax", {"heads": 2.0}))
    refused(f"relative positions: {whole}2.0", positions=("relative", {"heads": 2.0}))


@pytest.mark.parametrize(
    "half_lives",
    [[0, 256], [256, -1], [256], 256, "ab", [1, math.inf], [1e-308, 1], [1, 1e308]],
)
def test_half_lives_are_two_numbers_that_float32_can_tell_from_zero_and_from_each_other(half_lives):
    refused(
        rf"steps from 0\.01 to 1,000,000, got {re.escape(repr(half_lives))}",
        mixers=(("cumsum", {"half_lives": half_lives}),),
    )


def test_windows_and_tiles_need_a_size_and_fit_each_other_and_the_sinks():
    for options, message in (
        ({"window": 0}, "Mask: window must be a whole number above 0, got 0"),
        ({"window": 2.5}, "Mask: window must be a whole number above 0, got 2.5"),
        ({"window": 4, "sinks": -1}, "sinks must be a whole number, 0 or more, got -1"),
        ({"sinks": 2}, "sinks=2 need a window: without one, every position stays visible"),
        ({"tile": 0}, "attention: tile must be a whole number above 0, got 0"),
        ({"tile": 4, "window": 4}, "tiled attention has no window, got tile=4, window=4"),
    ):
        refused(message, mixers=(("softmax", {"heads": 2, **options}),))


def test_latent_attention_needs_sizes_above_zero():
    sizes = {"heads": 2, "d_latent": 4, "d_nope": 4, "d_rope": 4, "d_value": 4}
    for name in sizes:
        message = f"latent attention: {name} must be a whole number above 0, got 0"
        refused(message, mixers=(("latent", {**sizes, name: 0}),))
    message = "latent attention: d_query must be a whole number above 0, got 0"
    refused(message, mixers=(("latent", {**sizes, "d_query": 0}),))
    refused("unknown norm 'batch'; .*rms", mixers=(("latent", {**sizes, "norm": "batch"}),))


def test_folding_needs_a_size_and_a_known_mixer():
    refused(
        "folding: size must be a whole number above 0, got 0",
        mixers=(("folded", {"size": 0, "mixer": ["cumsum", {}]}),),
    )
    refused(
        r"folding: mixer must be a pair \(name, options\), got 'cumsum'",
        mixers=(("folded", {"size": 2, "mixer": "cumsum"}),),
    )
    refused(
        "unknown mixer 'cumsun'; .*cumsum",
        mixers=(("folded", {"size": 2, "mixer": ["cumsun", {}]}),),
    )


def test_a_convolution_needs_a_width():
    for width in (0, 2.0):
        message = f"a convolution: width must be a whole number above 0, got {width}"
        refused(message, mixers=(("conv", {"width": width}),))


@pytest.mark.parametrize("name", [name for name in MLPS if name != "none"])
def test_an_mlp_needs_a_ratio_that_leaves_it_a_width(name):
    for ratio in (0, -1, 0.01):
        message = f"an MLP of ratio={ratio}: width must be a whole number above 0, got "
        refused(message, mlp=(name, {"ratio": ratio}))


def test_positions_refuse_widths_they_cannot_pair():
    softmax = (("softmax", {"heads": 4}),)
    refused("even d_model, got 5", d_model=5, positions="sinusoidal")
    model = build(BASE.but(d_model=12, mixers=softmax, positions="rotary"))
    with pytest.raises(ValueError, match="even width per head, got 3"):
        model(torch.zeros(1, 2, dtype=torch.long))


def test_learned_positions_need_a_context_and_end_there():
    refused("need a context length; set Spec.context", positions="learned")
    model = build(BASE.but(positions="learned", context=8))
    ids = torch.zeros(1, 8, dtype=torch.long)
    _, state = model.run(ids)
    for too_far in (
        lambda: model(torch.zeros(1, 9, dtype=torch.long)),
        lambda: model.run(ids[:, :1], state),
    ):
        with pytest.raises(ValueError, match=r"position 9, .* end at 8; shorten the input or"):
            too_far()


# ---------------------------------------------------------------- ids


MODEL_SPECS = {
    "bytes": BASE,
    "patched": BASE.but(patch=Patch(size=3, d_model=8, layers=1, mixers=(("cumsum", {}),))),
    "encoder": ENCODER,
    "encoder-decoder": SEQ2SEQ,
}


@pytest.mark.parametrize("spec", MODEL_SPECS.values(), ids=MODEL_SPECS)
def test_ids_that_are_not_ids_are_refused(spec):
    model = built(spec)
    for bad in (
        torch.zeros(1, 4),
        torch.zeros(4, dtype=torch.long),
        torch.zeros(1, 0, dtype=torch.long),
        torch.zeros(0, 4, dtype=torch.long),
        torch.zeros(1, 4, 1, dtype=torch.long),
    ):
        with pytest.raises(
            ValueError, match=r"shape \(batch, time\), neither empty; got \(.*ids\[N"
        ):
            model(bad)
    for outside in (-1, 256):
        with pytest.raises(ValueError, match=f"ids must lie in 0 … 255, got .*{outside}"):
            model(torch.tensor([[1, outside]]))


def test_the_vocabulary_bounds_the_ids():
    model = build(BASE.but(vocab_size=10))
    assert model(torch.tensor([[9]])).shape == (1, 1, 10)
    with pytest.raises(ValueError, match="0 … 9, got 3 … 10"):
        model(torch.tensor([[3, 10]]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_any_integer_type_will_do(dtype):
    model, ids = build(BASE), torch.randint(256, (2, 7))
    same(model(ids.clamp(max=127).to(dtype)), model(ids.clamp(max=127)), atol=0)
    if dtype != torch.int16:
        same(model(ids.to(dtype)), model(ids), atol=0)


# ---------------------------------------------------------------- structure


def test_mixers_are_cycled_over_the_layers():
    mixers = (CONV, ("cumsum", {}), ("softmax", {"heads": 2}))
    names = [
        type(block.mix).__name__ for block in build(BASE.but(mixers=mixers, layers=5)).body.blocks
    ]
    assert names == ["GatedConv", "CumsumMixer", "SoftmaxAttention", "GatedConv", "CumsumMixer"]


def test_a_patch_makes_a_patched_model_and_taking_it_away_leaves_its_control():
    spec = MODEL_SPECS["patched"]
    model, control = build(spec), build(spec.but(patch=None))
    assert type(model) is type(control) is LanguageModel
    assert isinstance(model.body, PatchedStack)
    assert isinstance(control.body, Stack)
    assert len(model.body.before.blocks) + len(model.body.after.blocks) == len(control.body.blocks)


def test_norms_stand_before_and_after_the_layers_as_the_spec_says():
    model = build(BASE.but(norm_in="layer"))
    assert isinstance(model.norm_in, torch.nn.LayerNorm)
    assert isinstance(model.norm, torch.nn.RMSNorm)
    assert isinstance(build(BASE.but(norm_out="none")).norm, torch.nn.Identity)


def test_the_norm_before_the_head_is_that_of_the_layers_unless_it_is_given():
    same_norm = BASE.but(norm=("layer", {"eps": 0.5}))
    assert same_norm.norm_out == ("same", {})
    assert Spec.from_json(same_norm.to_json()) == same_norm
    assert build(same_norm).norm.eps == 0.5
    assert build(same_norm.but(norm=("layer", {"eps": 0.25}))).norm.eps == 0.25
    assert build(same_norm.but(norm_out=("layer", {"eps": 0.1}))).norm.eps == 0.1
    assert build(ENCODER.but(norm=("layer", {"eps": 0.5}))).encoder.norm.eps == 0.5
    with pytest.raises(ValueError, match=r"Spec.norm_out must be a pair .*, got None"):
        BASE.but(norm_out=None)


@pytest.mark.parametrize("spec", MODEL_SPECS.values(), ids=MODEL_SPECS)
def test_a_model_says_what_it_is_called_with_and_what_it_carries_along(spec):
    model, ids = build(spec, seed=0), torch.randint(256, (2, 9))
    inputs = model.example_inputs(ids)
    assert all(given is ids for given in inputs)
    assert len(inputs) == (2 if spec.cross else 1)
    logits, state = model(*inputs), model.final_state(*inputs)
    assert logits.shape == (2, 9, 256)
    if spec.family == "encoder":
        assert state is None
        return
    start = model.encode(ids) if spec.cross else None
    same(state, model.run(ids, start)[1], atol=0)
    assert state.t == 9


def test_every_family_has_a_row_and_the_smallest_structure():
    assert {spec.family for spec in MODEL_SPECS.values()} == set(_FAMILIES)


def test_an_encoder_cannot_continue_and_says_so():
    with pytest.raises(ValueError, match=r"cannot continue .* call model\(ids\), or .*'decoder'"):
        build(ENCODER).run(torch.zeros(1, 3, dtype=torch.long))


def test_segments_differ_and_the_first_is_the_default():
    model, ids = build(ENCODER.but(segments=2), seed=0), torch.randint(256, (2, 5))
    first = torch.zeros_like(ids)
    same(model(ids), model(ids, segments=first), atol=0)
    assert not torch.allclose(model(ids), model(ids, segments=1 - first))
    with pytest.raises(ValueError, match="0 … 1, got 2 … 2"):
        model(ids, segments=first + 2)
    with pytest.raises(ValueError, match=r"a model that has none; set Spec\.segments"):
        build(ENCODER)(ids, segments=first)


def test_an_encoder_decoder_encodes_its_source_once_and_then_streams():
    model = build(SEQ2SEQ.but(positions="sinusoidal"), seed=0).double()
    source, ids = torch.randint(256, (2, 9)), torch.randint(256, (2, 5))
    state = model.encode(source)
    first, after = model.run(ids[:, :2], state)
    second, _ = model.run(ids[:, 2:], after)
    same(torch.cat((first, second), dim=1), model(source, ids))
    assert not torch.allclose(model(source.flip(1), ids), model(source, ids))
    with pytest.raises(ValueError, match=r"starts from model.encode\(source\), got no state"):
        model.run(ids)


# ---------------------------------------------------------------- documents and padding


DECODER = BASE.but(mixers=(SOFTMAX,), positions="rotary")


def masks_given(call, monkeypatch):
    """The mask that the fused kernel was given, once for each attention."""
    fused, given = F.scaled_dot_product_attention, []

    def watched(q, k, v, attn_mask=None, is_causal=False):
        given.append(attn_mask)
        return fused(q, k, v, attn_mask=attn_mask, is_causal=is_causal)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    call()
    return given


@pytest.mark.parametrize("spec", [DECODER, ENCODER, SEQ2SEQ.but(layers=1)])
def test_no_mask_is_built_where_none_is_asked_for(spec, monkeypatch):
    ids = torch.randint(256, (2, 5))
    inputs = (ids, ids) if spec.cross else (ids,)
    given = masks_given(lambda: build(spec)(*inputs), monkeypatch)
    assert given
    assert set(given) == {None}
    assert None not in masks_given(lambda: build(ENCODER)(ids, documents=ids), monkeypatch)


def test_documents_hold_while_activations_are_made_again():
    ids, documents = torch.randint(256, (2, 9)), torch.arange(18).view(2, 9) // 4
    model = build(DECODER, seed=0)

    def gradients(recompute):
        model.body.recompute = recompute
        return torch.autograd.grad(model(ids, documents).square().mean(), model.parameters())

    same(gradients(1), gradients(0), atol=0)


def test_learned_positions_of_a_packed_row_count_from_the_start_of_the_row():
    model = build(DECODER.but(positions="learned", context=9), seed=0).double()
    ids, documents = torch.randint(256, (1, 6)), torch.tensor([[0, 0, 0, 1, 1, 1]])
    packed = model(ids, documents)
    same(packed[:, :3], model(ids[:, :3]))
    assert not torch.allclose(packed[:, 3:], model(ids[:, 3:]))
    table = model.positions.table.weight.data
    table[:3] = table[3:6].clone()  # now the first places look like the later ones
    same(packed[:, 3:], model(ids[:, 3:]))


@pytest.mark.parametrize(
    ("mixers", "patch", "named"),
    [
        ((SOFTMAX, CONV, ("cumsum", {}), CONV), None, "GatedConv"),
        ((SOFTMAX, ("cumsum", {})), None, "CumsumMixer"),
        ((("folded", {"size": 2, "mixer": SOFTMAX}),), None, "PatchPath"),
        ((SOFTMAX,), Patch(size=2, d_model=8, layers=1, mixers=(SOFTMAX,)), "PatchPath"),
    ],
)
def test_documents_are_refused_where_they_would_leak_into_each_other(mixers, patch, named):
    model, ids = build(BASE.but(mixers=mixers, patch=patch)), torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=f"{named} cannot be masked: .* would carry one .* latent"):
        model(ids, ids)


@pytest.mark.parametrize("spec", [DECODER, ENCODER])
def test_documents_of_another_shape_are_refused(spec):
    ids = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(
        ValueError, match=r"documents must have the shape of ids, \(2, 4\); got \(2, 3\)"
    ):
        build(spec)(ids, documents=ids[:, :3])


def test_a_source_that_is_all_padding_gives_finite_logits_and_gradients():
    model, ids = build(SEQ2SEQ, seed=0), torch.randint(256, (2, 5))
    text = torch.tensor([[True] * 5, [False] * 5])
    logits = model(ids, ids, text)
    assert logits.isfinite().all()
    logits.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_text_of_a_source_is_given_by_one_bool_for_each_id():
    model, ids = build(SEQ2SEQ), torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"text must be bool, .* got torch.int64.* documents >= 0"):
        model(ids, ids, torch.zeros_like(ids))
    with pytest.raises(
        ValueError, match=r"text must have the shape of ids, \(2, 4\); got \(2, 1\)"
    ):
        model.encode(ids, ids[:, :1] == 0)


def test_tied_weights_are_one_tensor_counted_once():
    tied, loose = build(BASE.but(tied=True)), build(BASE)
    assert tied.head.weight is tied.embed.weight
    assert count_parameters(loose) - count_parameters(tied) == 256 * 16


def test_dropout_is_drawn_by_its_own_generator_and_only_in_training():
    model, ids = build(BASE.but(dropout=0.5), seed=0), torch.randint(256, (2, 9))
    same(model.eval()(ids), build(BASE, seed=0)(ids), atol=0)

    def trained(seed):
        generator = torch.Generator().manual_seed(seed)
        for module in model.train().modules():
            if hasattr(module, "generator"):
                module.generator = generator
        return model(ids)

    before = torch.get_rng_state()
    one, again, other = trained(1), trained(1), trained(2)
    same(torch.get_rng_state(), before, atol=0)
    same(one, again, atol=0)
    assert not torch.allclose(one, other)


ROLES = BASE.but(
    layers=1, mixers=(("folded", {"size": 2, "mixer": SOFTMAX}),), mlp=("swiglu", {"ratio": 2})
)


@pytest.mark.parametrize(
    "spec",
    [
        ROLES,
        ROLES.but(mlp=("none", {}), layers=3),
        ENCODER.but(head="masked"),
        SEQ2SEQ.but(layers=1),
    ],
)
def test_layers_whose_output_is_added_start_smaller_and_so_does_the_head(spec):
    model = build(spec.but(d_model=64), seed=0)
    blocks = sum("Block" in type(module).__name__ for module in model.modules())
    parts = blocks if spec.mlp[0] == "none" else 2 * blocks
    residual = {n for n, m in model.named_modules() if isinstance(m, ResidualLinear)}
    assert residual == {n for n, _ in model.named_modules() if n.endswith((".out", ".unfold"))}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            scale = parts**-0.5 if name in residual else 1.0
            scale = 0.2 if isinstance(module, LinearHead) else scale
            size = module.weight.std().item() * module.in_features**0.5
            assert size == pytest.approx(scale, rel=0.05), name


@pytest.mark.parametrize("spec", [BASE, ENCODER, SEQ2SEQ])
def test_a_model_draws_its_weights_once_all_of_them(spec, monkeypatch):
    drawn = []
    monkeypatch.setattr(families, "initialise", lambda model: drawn.append(count_parameters(model)))
    model = build(spec)
    assert drawn == [count_parameters(model)]


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_evaluated_without_dropout_and_gradients_and_left_as_it_was(training):
    model, ids = build(BASE.but(dropout=0.5), seed=0).train(training), torch.randint(256, (2, 9))
    with eval_mode(model):
        logits = model(ids)
        same(model(ids), logits, atol=0)
        assert not logits.requires_grad
    assert model.training == training
    assert model(ids).requires_grad
    with pytest.raises(ValueError, match="ids must"), eval_mode(model):
        model(ids - 256)
    assert model.training == training
    assert torch.is_grad_enabled()


def test_dropout_keeps_the_mean():
    model = build(BASE.but(dropout=0.25))
    dropout = model.body.blocks[0].dropout.train()
    y = dropout(torch.ones(100_000))
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert y.mean().item() == pytest.approx(1.0, abs=0.01)


def test_a_model_is_built_from_the_path_of_a_specs_json(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(TINY["gpt-nano"].to_json())
    ids = torch.arange(7)[None]
    expected = build(TINY["gpt-nano"], seed=3)(ids)
    for what in (path, str(path)):
        assert torch.equal(build(what, seed=3)(ids), expected)
    with pytest.raises(ValueError, match="unknown preset 'mine'; choose from"):
        build("mine")
