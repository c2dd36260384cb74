"""Attention layers equal their formulas; windows, tiles, distances, and masks that are refused."""

import pytest
import torch
import torch.nn.functional as F
from helpers import same, vectors
from torch import nn

from qllk.checks import build_part
from qllk.model import kernels
from qllk.model.attention import (
    BidirectionalAttention,
    CrossAttention,
    KVState,
    LatentAttention,
    LatentState,
    SoftmaxAttention,
)
from qllk.model.families import build, count_parameters
from qllk.model.masks import Mask
from qllk.model.mixers import MIXERS
from qllk.model.positions import (
    BidirectionalRelative,
    Relative,
    Rotary,
)
from qllk.probes.inside import state_numbers, visibility
from qllk.probes.measure import count_flops
from qllk.spec import Spec


def test_softmax_attention_computes_its_formula():
    mixer, x = SoftmaxAttention(6, heads=2).double(), vectors(1, 4, 6)
    q, k, v = (x[0] @ W.T for W in mixer.qkv.weight.split(6))
    heads = []
    for h in (slice(0, 3), slice(3, 6)):
        scores = (q[:, h] @ k[:, h].T / 3**0.5).exp().tril()
        heads.append(scores @ v[:, h] / scores.sum(1, keepdim=True))
    same(mixer(x)[0][0], torch.cat(heads, dim=1) @ mixer.out.weight.T)


def test_bidirectional_attention_computes_its_formula():
    mixer, x = BidirectionalAttention(6, heads=2).double(), vectors(1, 4, 6)
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
        CrossAttention(6, heads=2).double(),
        vectors(1, 4, 6),
        vectors(1, 7, 6),
    )
    q, (k, v) = x[0] @ cross.q.weight.T, (memory[0] @ W.T for W in cross.kv.weight.split(6))
    heads = [
        (q[:, h] @ k[:, h].T / 3**0.5).softmax(-1) @ v[:, h] for h in (slice(0, 3), slice(3, 6))
    ]
    given = cross.init_state(memory)
    y, state = cross(x, given)
    same(y[0], torch.cat(heads, dim=1) @ cross.out.weight.T)
    assert state is given
    assert given.k.shape == (1, 2, 7, 3)
    same(cross.weights(x, given)[0] @ split(v), split(torch.cat(heads, dim=1)))
    text = torch.arange(7)[None] < 4
    padded, shorter = cross.init_state(memory, text), cross.init_state(memory[:, :4])
    same(cross(x, padded)[0], cross(x, shorter)[0])
    same(cross.weights(x, padded), F.pad(cross.weights(x, shorter), (0, 3)))


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
    mixer = build_part(MIXERS, part, "mixer", (8, Rotary(8))).double()
    torch.manual_seed(0)
    placeless = build_part(MIXERS, part, "mixer", (8,)).double()
    same(mixer(x, nothing_before(mixer, 1000))[0], mixer(x)[0], atol=1e-9)
    assert not torch.allclose(mixer(x)[0], placeless(x)[0])


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
    [(SoftmaxAttention, Relative), (BidirectionalAttention, BidirectionalRelative)],
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
    with pytest.raises(ValueError, match=r"sinks, whose distance is lost .* sinks=2, tile=N"):
        SoftmaxAttention(8, positions, heads=2, window=4, sinks=2)
    with pytest.raises(ValueError, match=r"tiles, which take no bias; .* tile=4\. Use rotary"):
        SoftmaxAttention(8, positions, heads=2, tile=4)


@pytest.mark.parametrize("options", [{"tile": 4}, {"window": 5, "sinks": 2}])
def test_sinks_and_tiles_are_refused_with_a_mask(options):
    mixer, x = SoftmaxAttention(8, heads=2, **options), torch.randn(1, 5, 8)
    numbers = torch.tensor([[0, 0, 1, 1, 1]])
    for mask in (Mask(documents=numbers), Mask(text=numbers == 0)):
        with pytest.raises(ValueError, match=r"sinks or tiles cannot be .* sinks=\d, tile="):
            mixer(x, None, mask)
    same(mixer(x, None, Mask())[0], mixer(x)[0], atol=0)  # which hides nothing more


@pytest.mark.parametrize(("name", "options"), [("softmax", {}), ("latent", LATENT)])
def test_a_window_is_an_option_of_the_mixer_and_not_of_the_mask_it_is_given(name, options):
    mixer = build_part(MIXERS, (name, {"heads": 2, **options}), "mixer", (8,))
    with pytest.raises(ValueError, match=r"options of its own, got .* window=4, sinks=1\. Build"):
        mixer(torch.randn(1, 5, 8), None, Mask(window=4, sinks=1))


def test_cross_attention_takes_its_mask_from_its_state():
    cross, x = CrossAttention(8, heads=2), torch.randn(1, 5, 8)
    with pytest.raises(ValueError, match=r"takes its mask from its state, got Mask.* init_state"):
        cross(x, cross.init_state(x), Mask())


# ---------------------------------------------------------------- shared keys


@pytest.mark.parametrize("options", [{}, {"window": 5, "sinks": 1}, {"tile": 3}])
def test_shared_keys_are_those_of_a_layer_that_repeats_them(options):
    few = SoftmaxAttention(8, heads=4, kv_heads=2, **options).double()
    all_heads = SoftmaxAttention(8, heads=4, **options).double()
    q, k, v = few.qkv.weight.split((8, 4, 4))
    repeated = [
        part.unflatten(0, (2, 2)).repeat_interleave(2, dim=0).flatten(0, 1) for part in (k, v)
    ]
    with torch.no_grad():
        all_heads.qkv.weight.copy_(torch.cat((q, *repeated)))
        all_heads.out.weight.copy_(few.out.weight)
    x = vectors(2, 12, 8)
    same(few(x)[0], all_heads(x)[0])
    assert 2 * state_numbers(few(x)[1]) == state_numbers(all_heads(x)[1])


def test_shared_keys_must_divide_the_heads():
    with pytest.raises(ValueError, match="kv_heads=3 must divide heads=4"):
        SoftmaxAttention(8, heads=4, kv_heads=3)
    with pytest.raises(ValueError, match="kv_heads must be a whole number above 0, got 0"):
        SoftmaxAttention(8, heads=4, kv_heads=0)
