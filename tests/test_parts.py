"""Parts with a formula of their own: positions, MLPs, decays … The laws cannot see these."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import same
from torch import nn

from qllk.checks import build_part
from qllk.model import kernels, mixers
from qllk.model.blocks import NORMS_AT, Block, CrossBlock
from qllk.model.families import build, count_parameters
from qllk.model.layers import HEADS, MLPS, NORMS
from qllk.model.mixers import (
    DECAYS,
    MIXERS,
    NORMALISERS,
    CumsumMixer,
    DeltaRule,
    FoldedMixer,
    KVState,
    LatentAttention,
    LatentState,
    LinearAttention,
    SoftmaxAttention,
)
from qllk.model.positions import (
    BidirectionalRelative,
    Learned,
    NoPositions,
    Relative,
    Rotary,
    Sinusoidal,
)
from qllk.probes.inside import state_numbers, visibility
from qllk.probes.measure import count_flops
from qllk.spec import Spec


def vectors(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# ---------------------------------------------------------------- positions


@pytest.mark.parametrize("shift", [1, 7, 100_000])
def test_rotary_scores_depend_on_distance_alone(shift):
    rotary, q, k = Rotary(8), vectors(1, 1, 5, 8), vectors(1, 1, 5, 8)
    here = rotary.turn(q, 0) @ rotary.turn(k, 0).mT
    there = rotary.turn(q, shift) @ rotary.turn(k, shift).mT
    same(here, there, atol=1e-9)
    assert not torch.allclose(here, q @ k.mT)


def test_rotary_turns_keep_lengths_and_add_up():
    rotary, x = Rotary(8), vectors(1, 1, 1, 8)
    same(rotary.turn(x, 9).norm(), x.norm())
    same(rotary.turn(rotary.turn(x, 4), 5), rotary.turn(x, 9))
    same(rotary.turn(x, 0), x)


def test_rotary_first_pair_turns_by_one_radian_a_step():
    x = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(1, 1, 3, 4)
    turned = Rotary(4).turn(x, 2)
    same(turned[0, 0, :, 0], torch.tensor([2.0, 3, 4], dtype=torch.float64).cos())
    same(turned[0, 0, :, 2], torch.tensor([2.0, 3, 4], dtype=torch.float64).sin())


def test_sinusoidal_positions_are_the_published_waves():
    added = Sinusoidal(4).add(torch.zeros(1, 2, 4, dtype=torch.float64), t0=3)
    for i, t in enumerate((3, 4)):
        slow = t / 10_000**0.5
        expected = [math.sin(t), math.sin(slow), math.cos(t), math.cos(slow)]
        assert added[0, i].tolist() == pytest.approx(expected)


def test_learned_positions_add_the_row_of_their_place():
    learned, x = Learned(3, context=9), torch.zeros(2, 2, 3)
    same(learned.add(x, t0=4), learned.table.weight[4:6].expand(2, 2, 3))


def test_positions_that_only_add_do_not_turn_and_the_other_way_round():
    x = vectors(1, 2, 3, 4)
    for positions in (NoPositions(4), Learned(4, context=9), Sinusoidal(4)):
        assert positions.turn(x, 5) is x
    for positions in (NoPositions(4), Rotary(4)):
        same(positions.add(x[0], 5), x[0], atol=0)


def test_a_scaled_rotary_turns_so_many_times_slower():
    x = vectors(1, 1, 4, 8).expand(1, 1, 4, 8)
    slow, rotary = Rotary(8, scaling=3.0), Rotary(8)
    same(
        slow.turn(x, 6)[:, :, ::3],
        torch.cat([rotary.turn(x[:, :, i : i + 1], 2 + i // 3) for i in (0, 3)], 2),
    )


def test_rotary_positions_refuse_a_scaling_that_does_not_turn():
    with pytest.raises(ValueError, match="scaling of rotary positions must be above 0, got 0"):
        Rotary(8, scaling=0)


def test_relative_buckets_hold_one_distance_each_and_then_ever_more():
    ahead = -torch.arange(24)
    found = Relative(8, heads=1, buckets=8, distance=20).bucket(ahead, 8).tolist()
    assert found[:5] == [0, 1, 2, 3, 4]
    assert found[4:20] == sorted(found[4:20])
    assert set(found) == set(range(8))
    assert found[20:] == [7] * 4


def test_a_decoders_relative_buckets_do_not_tell_the_future_apart():
    relative = Relative(8, heads=1, buckets=8, distance=20)
    assert relative.bucket(torch.arange(5), 8).tolist() == [0] * 5


def test_an_encoders_relative_buckets_are_half_for_each_direction():
    relative = BidirectionalRelative(8, heads=1, buckets=8, distance=20)
    assert relative.bucket(torch.tensor([-30, -1, 0, 1, 30]), 8).tolist() == [3, 1, 0, 5, 7]


@pytest.mark.parametrize("kind", [Relative, BidirectionalRelative])
def test_a_relative_bias_is_read_from_the_table_by_head_and_distance(kind):
    relative = kind(8, heads=2, buckets=8, distance=20)
    bias = relative.bias(2, 3, 7)
    assert bias.shape == (2, 3, 7)
    same(bias, relative.bias(2, 7, 7)[:, 4:], atol=0)
    same(bias[:, 1, 3], relative.table.weight[2], atol=0)  # the query at place 5, two back


def test_relative_positions_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="positions of heads=2 meet a mixer of heads=4"):
        SoftmaxAttention(8, Relative(8, heads=2), heads=4)(torch.zeros(1, 2, 8))
    for sizes in ({"buckets": 2}, {"buckets": 8, "distance": 8}):
        with pytest.raises(ValueError, match="4 buckets or more and a distance beyond them, got"):
            Relative(8, heads=2, **sizes)


# ---------------------------------------------------------------- norms, MLPs, heads


MLP_FORMULAS = {
    "gelu": lambda x: x * 0.5 * (1 + (0.797884560802865 * (x + 0.044715 * x**3)).tanh()),
    "gelu-exact": lambda x: x * 0.5 * (1 + (x / 2**0.5).erf()),
    "relu": lambda x: x * (x > 0),
    "relu2": lambda x: x * x * (x > 0),
}


@pytest.mark.parametrize("name", MLP_FORMULAS)
def test_an_mlp_computes_its_formula(name):
    mlp, x = MLPS[name](4, ratio=3, bias=True).double(), vectors(2, 5, 4)
    inside = MLP_FORMULAS[name](x @ mlp.up.weight.T + mlp.up.bias)
    assert inside.shape[-1] == 12
    same(mlp(x), inside @ mlp.out.weight.T + mlp.out.bias)
    assert count_parameters(MLPS[name](4)) == 8 * 4 * 4


def test_swiglu_computes_its_formula():
    mlp, x = MLPS["swiglu"](4, ratio=3).double(), vectors(2, 5, 4)
    gate, up = (x @ W.T for W in mlp.gate_up.weight.split(12))
    same(mlp(x), (gate * gate.sigmoid() * up) @ mlp.out.weight.T)


@pytest.mark.parametrize("name", MLPS)
def test_an_mlp_is_as_wide_as_its_ratio_rounded(name):
    assert MLPS[name](6, ratio=1.75).out.in_features == 10


@pytest.mark.parametrize(("ratio", "squares"), [(4, 12), (8 / 3, 8)])
def test_both_hidden_sizes_of_swiglu_have_the_parameters_they_are_known_for(ratio, squares):
    assert count_parameters(MLPS["swiglu"](768, ratio=ratio)) == squares * 768**2


def test_norms_by_hand():
    x, slope = torch.tensor([[[1.0, -3.0]]], dtype=torch.float64), math.tanh(0.5)
    expected = {
        ("none", ()): [1, -3],
        ("layer", (("eps", 0.0),)): [1, -1],
        ("rms", (("eps", 4.0),)): [1 / 3, -1],
        ("rms", (("eps", 4.0), ("elementwise_affine", False))): [1 / 3, -1],
        ("tanh", ()): [slope, -math.tanh(1.5)],
        ("tanh", (("slope", 1.0),)): [math.tanh(1), -math.tanh(3)],
    }
    assert {name for name, _ in expected} == set(NORMS)
    for (name, options), row in expected.items():
        norm = build_part(NORMS, (name, dict(options)), "norm", 2).double()
        same(norm(x), torch.tensor([[row]], dtype=torch.float64))


def test_an_rms_norm_can_do_without_weights():
    assert (
        count_parameters(build_part(NORMS, ("rms", {"elementwise_affine": False}), "norm", 8)) == 0
    )


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_takes_half_precision_without_a_warning(name, recwarn):
    torch.set_warn_always(True)  # else torch says it once in a process
    try:
        y = build_part(NORMS, (name, {}), "norm", 4)(torch.randn(2, 4).bfloat16())
    finally:
        torch.set_warn_always(False)
    assert y.isfinite().all()
    assert not [warning.message for warning in recwarn]


def test_the_masked_head_computes_its_formula():
    head, x = HEADS["masked"](4, 9).double(), vectors(2, 3, 4)
    inside = MLP_FORMULAS["gelu-exact"](x @ head.transform.weight.T + head.transform.bias)
    same(head(x), F.layer_norm(inside, (4,)) @ head.weight.T + head.bias)


# ---------------------------------------------------------------- where norms stand


class Times(nn.Module):
    """A mixer that multiplies, and leaves the state alone."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x, state=None):
        return self.factor * x, state


def thirds(width):
    """A norm that is easy to follow."""
    return type("Third", (nn.Module,), {"forward": lambda self, x: x / 3})()


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("pre", (1 + 6 / 3) * (1 + 2)),
        ("post", (1 + 6) / 3 * (1 + 6) / 3),
        ("sublayer", (1 + 6 / 3) * (1 + 6 / 3)),
    ],
)
def test_a_norm_stands_where_its_place_says(at, expected):
    mlp = type("Six", (nn.Module,), {"forward": lambda self, x: 6 * x})()
    block = Block(Times(6), mlp, thirds, 1, 0.0, NORMS_AT[at])
    y, state = block(torch.ones(1, 1, 1), "kept")
    assert y.item() == pytest.approx(expected)
    assert state == "kept"


class Plus(Times):
    """A mixer that adds, so that it matters which part comes first."""

    def forward(self, x, state=None):
        return x + self.factor, state


@pytest.mark.parametrize(
    ("at", "mixed", "looked", "thought"),
    [
        ("pre", 1 + 1 / 3 + 3, 52 / 9 + 9, 3),
        ("post", (1 + 4) / 3, (10 / 3 + 9) / 3, 7 / 3),
        ("sublayer", 1 + 4 / 3, 28 / 9 + 3, 3),
    ],
)
def test_a_cross_block_adds_mixer_memory_and_mlp_in_this_order(at, mixed, looked, thought):
    mlp = type("Six", (nn.Module,), {"forward": lambda self, x: 6 * x})()
    block = CrossBlock(Plus(3), mlp, thirds, 1, 0.0, NORMS_AT[at], cross=Plus(9))
    asked = []
    block.cross.register_forward_pre_hook(lambda part, args: asked.append(args[0].item()))
    y, state = block(torch.ones(1, 1, 1), ("mixer's", "memory's"))
    assert asked == [pytest.approx(mixed / 3 if at == "pre" else mixed)]
    assert y.item() == pytest.approx(looked * thought)
    assert state == ("mixer's", "memory's")


# ---------------------------------------------------------------- decays and normalisers


def test_half_lives_run_from_the_shortest_to_the_longest_on_a_log_scale():
    decay = mixers.log_decays(3, 4, 64).double()
    same((decay * torch.tensor([4.0, 16, 64])).exp(), torch.full((3,), 0.5).double(), atol=1e-6)


def test_a_channel_of_the_cumsum_mixer_forgets_half_in_its_half_life():
    mixer = CumsumMixer(2, half_lives=(3, 6))
    _, S = kernels.running_sum(torch.eye(7)[:1, :, None].expand(1, 7, 2), None, mixer.log_decay)
    same(S, torch.tensor([[0.25, 0.5]]), atol=1e-6)  # six steps after a single one


def test_fixed_decays_are_those_of_the_retention_paper():
    decay = DECAYS["fixed"](8, 4)(vectors(2, 3, 8))
    assert decay.shape == (2, 4, 3, 1)
    expected = [1 - 2**-5, 1 - 2**-6, 1 - 2**-7, 1 - 2**-8]
    assert decay.exp()[0, :, 0, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("name", "width"), [("head", 1), ("channel", 2)])
def test_learned_decays_forget_and_have_one_speed_for_each(name, width):
    decay = DECAYS[name](8, 4).double()
    found = decay(vectors(2, 3, 8))
    assert found.shape == (2, 4, 3, width)
    assert (found < 0).all()
    zero = decay.requires_grad_(False)
    zero.speed.bias.zero_()
    half_life = math.log(0.5) / zero(torch.zeros(1, 1, 8).double())[0, 0, 0, 0].item()
    assert half_life == pytest.approx(16)


def test_normalisers_by_hand():
    sums = torch.tensor([[[3.0, 4.0], [6.0, -8.0]]], dtype=torch.float64)
    counts = torch.tensor([[4], [16]])
    expected = {
        "none": [[3, 4], [6, -8]],
        "count": [[0.75, 1], [0.375, -0.5]],
        "root": [[1.5, 2], [1.5, -2]],
        "rms": [[3 / 12.5**0.5, 4 / 12.5**0.5], [6 / 50**0.5, -8 / 50**0.5]],
    }
    assert set(expected) == set(NORMALISERS)
    for name, rows in expected.items():
        found = NORMALISERS[name](sums, counts)
        same(found, torch.tensor([rows], dtype=torch.float64), atol=1e-7)


# ---------------------------------------------------------------- mixers, written out


def test_the_cumsum_mixer_computes_its_formula():
    mixer, x = CumsumMixer(6, normaliser="count").double(), vectors(2, 5, 6)
    q, k, v, g = (x @ W.T for W in mixer.qkvg.weight.split(6))
    mean = torch.stack([(k * v)[:, : t + 1].mean(1) for t in range(5)], dim=1)
    same(mixer(x)[0], (g.sigmoid() * q * mean) @ mixer.out.weight.T)


def test_softmax_attention_computes_its_formula():
    mixer, x = SoftmaxAttention(6, heads=2).double(), vectors(1, 4, 6)
    q, k, v = (x[0] @ W.T for W in mixer.qkv.weight.split(6))
    heads = []
    for h in (slice(0, 3), slice(3, 6)):
        scores = (q[:, h] @ k[:, h].T / 3**0.5).exp().tril()
        heads.append(scores @ v[:, h] / scores.sum(1, keepdim=True))
    same(mixer(x)[0][0], torch.cat(heads, dim=1) @ mixer.out.weight.T)


def test_bidirectional_attention_computes_its_formula():
    mixer, x = mixers.BidirectionalAttention(6, heads=2).double(), vectors(1, 4, 6)
    q, k, v = (x[0] @ W.T for W in mixer.qkv.weight.split(6))
    heads = [
        (q[:, h] @ k[:, h].T / 3**0.5).softmax(-1) @ v[:, h] for h in (slice(0, 3), slice(3, 6))
    ]
    y, state = mixer(x)
    same(y[0], torch.cat(heads, dim=1) @ mixer.out.weight.T)
    assert state is None
    same(mixer.weights(x)[0] @ split(v), split(torch.cat(heads, dim=1)))


def split(x):
    """(T,6) -> two heads (2,T,3)."""
    return x.unflatten(-1, (2, 3)).transpose(0, 1)


def test_cross_attention_computes_its_formula_and_keeps_the_memory():
    cross, x, memory = (
        mixers.CrossAttention(6, heads=2).double(),
        vectors(1, 4, 6),
        vectors(1, 7, 6),
    )
    q, (k, v) = x[0] @ cross.q.weight.T, (memory[0] @ W.T for W in cross.kv.weight.split(6))
    heads = [
        (q[:, h] @ k[:, h].T / 3**0.5).softmax(-1) @ v[:, h] for h in (slice(0, 3), slice(3, 6))
    ]
    read = cross.read(memory)
    y, state = cross(x, read)
    same(y[0], torch.cat(heads, dim=1) @ cross.out.weight.T)
    assert state is read
    assert read.k.shape == (1, 2, 7, 3)
    same(cross.weights(x, read)[0] @ split(v), split(torch.cat(heads, dim=1)))
    seen = torch.arange(7) < 4
    read, shorter = cross.read(memory, seen[None, None, None]), cross.read(memory[:, :4])
    same(cross(x, read)[0], cross(x, shorter)[0])
    same(cross.weights(x, read), F.pad(cross.weights(x, shorter), (0, 3)))


def test_linear_attention_computes_its_formula():
    mixer, x = LinearAttention(6, heads=2, decay="fixed").double(), vectors(1, 4, 6)
    q, k, v, g = (x[0] @ W.T for W in mixer.qkvg.weight.split(6))
    ages = (torch.arange(4)[:, None] - torch.arange(4)).double()
    heads = []
    for h, part in enumerate((slice(0, 3), slice(3, 6))):
        weight = ((1 - 2.0 ** -(5 + h)) ** ages).tril()
        o = (q[:, part] @ k[:, part].T / 3**0.5 * weight) @ v[:, part]
        heads.append(o / (o.square().mean(-1, keepdim=True) + torch.finfo(o.dtype).eps).sqrt())
    y = torch.cat(heads, dim=1) * g.sigmoid()
    same(mixer(x)[0][0], y @ mixer.out.weight.T, atol=1e-8)  # the fixed speeds were made in float32


def test_the_gated_convolution_computes_its_formula():
    mixer, x = mixers.GatedConv(4, width=3).double(), vectors(1, 5, 4)
    values, gate = (x[0] @ W.T for W in mixer.xg.weight.split(4))
    y = torch.stack(
        [sum(mixer.taps[j] * values[t - j] for j in range(3) if t >= j) for t in range(5)]
    )
    same(mixer(x)[0][0], (gate * gate.sigmoid() * y) @ mixer.out.weight.T)


LATENT = {"d_latent": 5, "d_nope": 3, "d_rope": 2, "d_value": 4}


def test_latent_attention_computes_its_formula():
    mixer, x = LatentAttention(6, heads=2, **LATENT).double(), vectors(1, 4, 6)
    q = (x[0] @ mixer.query.weight.T).split(3 + 2, dim=1)
    c, r = (x[0] @ mixer.down.weight.T).split((5, 2), dim=1)
    c = c / (c.square().mean(1, keepdim=True) + torch.finfo(c.dtype).eps).sqrt()
    heads = []
    for h, up in enumerate(mixer.up.weight.split(3 + 4)):
        k = torch.cat((c @ up[:3].T, r), dim=1)
        scores = (q[h] @ k.T / 5**0.5).exp().tril()
        heads.append(scores @ (c @ up[3:].T) / scores.sum(1, keepdim=True))
    same(mixer(x)[0][0], torch.cat(heads, dim=1) @ mixer.out.weight.T)


def test_compressed_queries_compute_their_formula():
    torch.manual_seed(0)
    mixer = LatentAttention(6, heads=2, **LATENT, d_query=3).double()
    plain = LatentAttention(6, heads=2, **LATENT).double()
    plain.load_state_dict(
        {k: v for k, v in mixer.state_dict().items() if "query" not in k}, strict=False
    )
    down, _, up = mixer.query
    x = vectors(1, 4, 6)
    c = x @ down.weight.T
    c = c / (c.square().mean(-1, keepdim=True) + torch.finfo(c.dtype).eps).sqrt()
    plain.query = type("Given", (nn.Module,), {"forward": lambda self, x: c @ up.weight.T})()
    same(mixer(x)[0], plain(x)[0])
    query = 6 * 3 + 3 + 3 * 2 * (3 + 2)  # down, norm, up
    assert count_parameters(mixer) - count_parameters(plain) == query


def test_a_step_of_latent_attention_rebuilds_no_keys_and_values():
    mixer, N = LatentAttention(6, heads=2, **LATENT), 200
    _, state = mixer(torch.randn(1, N, 6))
    rebuilding = 2 * N * mixer.up.weight.numel()
    assert count_flops(lambda: mixer(torch.randn(1, 1, 6), state)) < rebuilding / 2


def test_latent_attention_counts_as_the_swa_mla_code_does():
    sizes = {"heads": 12, "d_latent": 256, "d_nope": 128, "d_rope": 64, "d_value": 128}
    with torch.device("meta"):
        mixer = LatentAttention(768, **sizes, norm="layer")
    query, down, up, out = 768 * 12 * 192, 768 * (256 + 64), 256 * 12 * (128 + 128), 12 * 128 * 768
    assert count_parameters(mixer) == query + down + 2 * 256 + up + out


def test_the_delta_mixer_computes_its_formula():
    mixer, x = DeltaRule(6, heads=2).double(), vectors(1, 4, 6)
    q, k, v, g = (x[0] @ W.T for W in mixer.qkvg.weight.split(6))
    heads = []
    for h, part in enumerate((slice(0, 3), slice(3, 6))):
        S, beta, rows = torch.zeros(3, 3).double(), (x[0] @ mixer.strength.weight[h]).sigmoid(), []
        for t in range(4):
            key = k[t, part] / k[t, part].norm()
            S = S + beta[t] * torch.outer(key, v[t, part] - key @ S)
            rows.append(q[t, part] / q[t, part].norm() @ S)
        o = torch.stack(rows)
        heads.append(o / (o.square().mean(-1, keepdim=True) + torch.finfo(o.dtype).eps).sqrt())
    y = torch.cat(heads, dim=1) * g.sigmoid()
    same(mixer(x)[0][0], y @ mixer.out.weight.T)


def test_folding_computes_its_formula():
    mixer, x = FoldedMixer(4, size=2, mixer=("softmax", {"heads": 1})).double(), vectors(1, 5, 4)
    path = mixer.path
    folds = torch.stack((x[0, 0:2].flatten(), x[0, 2:4].flatten())) @ path.fold.weight.T
    hints = (path.trunk(folds[None])[0][0] @ path.unfold.weight.T).view(4, 4)
    hints = torch.cat((torch.zeros(1, 4).double(), hints))  # the first speaks to the step after it
    same(mixer(x)[0][0], x[0] @ mixer.out.weight.T + hints)


@pytest.mark.parametrize("size", [2, 4])
def test_folding_divides_the_pairs_of_attention_by_its_square(size):
    softmax = ("softmax", {"heads": 1})

    def pairs(mixer):
        """What is left of the operations when everything that is linear in length is taken off."""
        short, long = (count_flops(lambda T=T: mixer(torch.randn(1, T, 4))) for T in (64, 128))
        return long - 2 * short

    assert pairs(SoftmaxAttention(4, heads=1)) == size**2 * pairs(
        FoldedMixer(4, size=size, mixer=softmax)
    )


# ---------------------------------------------------------------- windows, distances, options


@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (4, 0), (4, 1), (4, 3), (1, 2)])
def test_a_window_shows_exactly_its_steps_and_the_sinks(window, sinks):
    options = {"heads": 2, "window": window, "sinks": sinks}
    model = build(Spec(d_model=8, layers=1, mixers=(("softmax", options),)), seed=0).double()
    seen = visibility(model, 20)
    for t in range(20):
        expected = {*range(max(0, t - window + 1), t + 1), *range(min(sinks, t + 1))}
        assert set(seen[t].nonzero().flatten().tolist()) == expected
    assert (seen.sum(dim=1)[window + sinks - 1 :] == window + sinks).all()


@pytest.mark.parametrize("T", [16, 100, 1000])
def test_a_windows_state_is_bounded_by_the_window_and_the_sinks(T):
    _, state = SoftmaxAttention(8, heads=2, window=5, sinks=3)(torch.randn(1, T, 8))
    assert state.t == T
    assert state_numbers(state) == 2 * 8 * (5 + 3 - 1)  # the next step brings its own


def nothing_before(mixer, t):
    """A state of no steps, at position t."""
    if isinstance(mixer, LatentAttention):
        return LatentState(torch.zeros(1, 0, 5).double(), torch.zeros(1, 0, 2).double(), t)
    return KVState(torch.zeros(1, 2, 0, 4).double(), torch.zeros(1, 2, 0, 4).double(), t)


@pytest.mark.parametrize(("name", "options"), [("softmax", {}), ("latent", LATENT)])
def test_rotary_attention_depends_on_distance_and_on_nothing_else(name, options):
    x, part = vectors(1, 6, 8), (name, {"heads": 2, **options})
    torch.manual_seed(0)
    mixer = build_part(MIXERS, part, "mixer", 8, Rotary(8)).double()
    torch.manual_seed(0)
    placeless = build_part(MIXERS, part, "mixer", 8).double()
    same(mixer(x, nothing_before(mixer, 1000))[0], mixer(x)[0], atol=1e-9)
    assert not torch.allclose(mixer(x)[0], placeless(x)[0])


@pytest.mark.parametrize(
    ("name", "base", "change"),
    [
        ("softmax", {"heads": 2}, {"heads": 4}),
        ("softmax", {"heads": 2}, {"window": 5}),
        ("softmax", {"heads": 2, "window": 5}, {"sinks": 1}),
        ("latent", {"heads": 2, **LATENT}, {"d_query": 3}),
        ("latent", {"heads": 2, **LATENT}, {"norm": "layer"}),
        ("linear", {"heads": 2}, {"decay": "fixed"}),
        ("delta", {"heads": 2}, {"decay": "fixed"}),
        ("cumsum", {}, {"half_lives": (2, 9)}),
        ("cumsum", {}, {"normaliser": "count"}),
        (
            "folded",
            {"size": 2, "mixer": ("cumsum", {})},
            {"mixer": ("cumsum", {"normaliser": "root"})},
        ),
    ],
)
def test_an_option_changes_the_output_with_the_same_weights(name, base, change):
    x, outputs = vectors(1, 20, 8), []
    for options in (base, {**base, **change}):
        torch.manual_seed(0)
        outputs.append(build_part(MIXERS, (name, options), "mixer", 8).double()(x)[0])
    assert not torch.allclose(*outputs)


@pytest.mark.parametrize("tile", [1, 4, 99])
def test_tiles_change_nothing_but_how_attention_is_computed(tile):
    fused, tiled = SoftmaxAttention(8, heads=2), SoftmaxAttention(8, heads=2, tile=tile)
    tiled.load_state_dict(fused.state_dict())
    x = torch.randn(2, 30, 8, requires_grad=True)
    (y, state), (z, other) = fused(x), tiled(x)
    same(z, y, atol=1e-6)
    same(other, state, atol=0)
    same(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (z, y)), atol=1e-5)
    assert "Tiled" in graph(z)
    assert "Tiled" not in graph(y)


def graph(y):
    """The names of all operations behind y."""
    names, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        names.add(type(node).__name__)
        todo += [before for before, _ in node.next_functions if before]
    return " ".join(names)


@pytest.mark.parametrize(
    ("attention", "positions"),
    [(SoftmaxAttention, Relative), (mixers.BidirectionalAttention, BidirectionalRelative)],
)
def test_weights_of_attention_whose_queries_are_all_zero_are_those_of_the_distances(
    attention, positions
):
    positions = positions(8, heads=2, buckets=8, distance=20)
    mixer = attention(8, positions, heads=2)
    nn.init.zeros_(mixer.qkv.weight)
    scores = positions.bias(2, 5, 5)
    if attention is SoftmaxAttention:
        scores = scores.masked_fill(~kernels.causal_mask(5, 5), float("-inf"))
    same(mixer.weights(torch.randn(1, 5, 8))[0], scores.softmax(dim=-1), atol=1e-6)


def test_sinks_and_tiles_are_refused_where_positions_weigh_distances():
    positions = Relative(8, None, heads=2, buckets=8, distance=20)
    with pytest.raises(ValueError, match=r"how far sinks are by now, .* sinks=2, tile=N"):
        SoftmaxAttention(8, positions, heads=2, window=4, sinks=2)
    with pytest.raises(ValueError, match=r"take no weights; .* tile=4\. Use rotary"):
        SoftmaxAttention(8, positions, heads=2, tile=4)


@pytest.mark.parametrize("options", [{"tile": 4}, {"window": 5, "sinks": 2}])
def test_sinks_and_tiles_are_refused_beside_a_mask(options):
    keep = kernels.document_mask(torch.tensor([[0, 0, 1, 1, 1]]))
    with pytest.raises(ValueError, match=r"sinks or tiles takes no mask, .*; got sinks=\d, tile="):
        SoftmaxAttention(8, heads=2, **options)(torch.randn(1, 5, 8), None, keep)
