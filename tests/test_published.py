"""The published models: their sizes, their keys, and their logits by an independent rewrite.

The rewrite is plain arithmetic on a state_dict, a patch and a layer at a time, and shares no line
with the library.
"""

import math

import pytest
import torch
from helpers import same

from qllk.study.published import MELF, QLLK10, QLLK11

KERNEL_10 = ("q_proj", "k_proj", "v_proj", "gate")


def keys(single, layer, layers, prefix):
    return sorted([*single, *(f"{prefix}.{i}.{name}" for i in range(layers) for name in layer)])


def both(*names):
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


KEYS = {
    QLLK10: keys(
        ["byte_embedding.weight", "hash_proj", *both("decoder_head")],
        both(*(f"0.{name}" for name in KERNEL_10), "1", "2", "4", "5"),
        4,
        "layers",
    ),
    QLLK11: keys(
        ["byte_embedding.weight", "hash_proj", *both("patch_encoder", "patch_decoder", "head")],
        both("norm1", "kernel.qkv_proj", "kernel.gate_proj", "norm2", "mlp.0", "mlp.2"),
        4,
        "layers",
    ),
    MELF: keys(
        ["byte_embedding.weight", *both("fold_proj", "unfold_proj", "decoder_head")],
        [
            *("self_attn.in_proj_weight", "self_attn.in_proj_bias"),
            *both("self_attn.out_proj", "linear1", "linear2", "norm1", "norm2"),
        ],
        6,
        "transformer.layers",
    ),
}
SHAPES = {
    QLLK10: {
        "hash_proj": (256, 256),
        "layers.3.0.gate.weight": (256, 256),
        "layers.3.2.weight": (512, 256),
        "decoder_head.weight": (2048, 256),
    },
    QLLK11: {
        "patch_encoder.weight": (256, 256, 8),
        "patch_decoder.weight": (256, 256, 8),
        "layers.3.kernel.qkv_proj.weight": (768, 256),
        "layers.3.mlp.0.weight": (1024, 256),
    },
    MELF: {
        "fold_proj.weight": (256, 1024),
        "unfold_proj.weight": (1024, 256),
        "transformer.layers.5.linear1.weight": (2048, 256),
        "decoder_head.weight": (2048, 256),
    },
}
COUNTS = {QLLK10: 2_765_824, QLLK11: 4_404_992, MELF: 9_007_872}
SMALL = {
    QLLK10: {"dim": 12, "n_layers": 2, "patch_size": 3},
    QLLK11: {"dim": 12, "n_layers": 2, "patch_size": 3},
    MELF: {"dim": 12, "n_layers": 2, "n_heads": 3, "patch_size": 3, "fold_factor": 2},
}

each_model = pytest.mark.parametrize("cls", COUNTS, ids=lambda cls: cls.__name__)


@each_model
def test_the_defaults_have_the_published_size_and_keys(cls):
    with torch.device("meta"):
        model = cls()
    assert sum(p.numel() for p in model.parameters()) == COUNTS[cls]
    state = model.state_dict()
    assert sorted(state) == KEYS[cls]
    for name, shape in SHAPES[cls].items():
        assert tuple(state[name].shape) == shape


# ---------------------------------------------------------------- the rewrite


def affine(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w, name, x):
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def summed(q, k, v, gate):
    """Rows are patches: (P,D)."""
    S, y = torch.zeros_like(q[0]), []
    for p in range(len(q)):
        S = S + k[p] * v[p]
        y.append(q[p] * S / (1 + (-gate[p]).exp()))
    return torch.stack(y)


def means(w, row, size):
    x = w["byte_embedding.weight"][row]
    return torch.stack([x[i : i + size].sum(0) / size for i in range(0, len(row), size)])


def in_place(w, x):
    """(P,D) -> (P R,256): the head's first 256 numbers are the patch's first byte, and so on."""
    return torch.cat([affine(w, "decoder_head", patch).reshape(-1, 256) for patch in x])


def rewritten_10(w, row, n_layers, patch_size, **_):
    x = means(w, row, patch_size)
    x = x + torch.tanh(x @ w["hash_proj"])
    for i in range(n_layers):
        layer = f"layers.{i}"
        x = x + summed(*(affine(w, f"{layer}.0.{name}", x) for name in KERNEL_10))
        x = gelu(affine(w, f"{layer}.2", norm(w, f"{layer}.1", x)))
        x = norm(w, f"{layer}.5", affine(w, f"{layer}.4", x))
    return in_place(w, x)


def rewritten_11(w, row, dim, n_layers, patch_size):
    embedded = w["byte_embedding.weight"][row]
    taps, x = w["patch_encoder.weight"], []  # (D out, D in, R)
    for start in range(0, len(row), patch_size):
        patch = w["patch_encoder.bias"]
        for j in range(patch_size):
            patch = patch + taps[:, :, j] @ embedded[start + j]
        x.append(patch)
    x = torch.stack(x)
    x = x + torch.tanh(x @ w["hash_proj"])
    for i in range(n_layers):
        layer = f"layers.{i}"
        h = norm(w, f"{layer}.norm1", x)
        qkv = affine(w, f"{layer}.kernel.qkv_proj", h)
        q, k, v = qkv[:, :dim], qkv[:, dim : 2 * dim], qkv[:, 2 * dim :]
        x = x + summed(q, k, v, affine(w, f"{layer}.kernel.gate_proj", h))
        h = gelu(affine(w, f"{layer}.mlp.0", norm(w, f"{layer}.norm2", x)))
        x = x + affine(w, f"{layer}.mlp.2", h)
    taps, out = w["patch_decoder.weight"], []  # (D in, D out, R)
    for patch in x:
        out += [patch @ taps[:, :, j] + w["patch_decoder.bias"] for j in range(patch_size)]
    return affine(w, "head", torch.stack(out))


def rewritten_melf(w, row, dim, n_layers, n_heads, patch_size, fold_factor):
    x = means(w, row, patch_size)
    x = torch.stack([x[i : i + fold_factor].reshape(-1) for i in range(0, len(x), fold_factor)])
    x = affine(w, "fold_proj", x)
    for i in range(n_layers):
        layer, K = f"transformer.layers.{i}", dim // n_heads
        qkv = x @ w[f"{layer}.self_attn.in_proj_weight"].T + w[f"{layer}.self_attn.in_proj_bias"]
        heads = []
        for h in range(n_heads):
            q, k, v = (qkv[:, n * dim + h * K : n * dim + (h + 1) * K] for n in range(3))
            scores = (q @ k.T / math.sqrt(K)).exp()
            heads.append(scores @ v / scores.sum(-1, keepdim=True))
        x = x + affine(w, f"{layer}.self_attn.out_proj", torch.cat(heads, dim=1))
        x = norm(w, f"{layer}.norm1", x)
        h = affine(w, f"{layer}.linear1", x).clamp(min=0)
        x = norm(w, f"{layer}.norm2", x + affine(w, f"{layer}.linear2", h))
    x = affine(w, "unfold_proj", x)
    return in_place(w, torch.cat([fold.reshape(fold_factor, dim) for fold in x]))


REWRITTEN = {QLLK10: rewritten_10, QLLK11: rewritten_11, MELF: rewritten_melf}


@each_model
def test_the_logits_equal_the_rewrite(cls):
    sizes = SMALL[cls]
    model = cls(**sizes).double().eval()  # MELF has dropout
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too: a default of 1 or 0 hides much
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    ids = torch.randint(256, (2, 24))
    logits = model(ids)
    assert logits.shape == (2, 24, 256)
    assert logits.abs().max() > 0.1
    for row, expected in zip(ids, logits, strict=True):
        same(REWRITTEN[cls](weights, row, **sizes), expected)


@each_model
def test_the_published_models_start_as_published(cls):
    model = cls(**SMALL[cls])
    assert model.byte_embedding.weight.std().item() == pytest.approx(1.0, abs=0.05)
    if cls is not MELF:
        model = cls(dim=100, n_layers=1)
        assert model.hash_proj.std().item() == pytest.approx(0.02, abs=0.001)


# ---------------------------------------------------------------- errors


@each_model
def test_a_length_that_fills_no_patch_is_refused_with_the_cure(cls):
    piece = 32 if cls is MELF else 8
    model = cls(dim=16, n_layers=1)
    with pytest.raises(
        ValueError, match=f"reads {piece} bytes at once, .* 67 .* 64 or {64 + piece} b"
    ):
        model(torch.zeros(1, 67, dtype=torch.long))
    with pytest.raises(ValueError, match=f"length 3 is not a multiple .*; pass {piece}"):
        model(torch.zeros(1, 3, dtype=torch.long))
    assert model(torch.zeros(1, 64, dtype=torch.uint8)).shape == (1, 64, 256)


@each_model
def test_what_is_no_bytes_is_refused(cls):
    model = cls(dim=16, n_layers=1)
    for bad in (
        torch.zeros(1, 32),
        torch.zeros(32, dtype=torch.long),
        torch.zeros(1, 0, dtype=torch.long),
    ):
        with pytest.raises(
            ValueError, match=r"shape \(batch, time\), neither empty; got \(.*ids\[N"
        ):
            model(bad)
    for outside in (-1, 256):
        with pytest.raises(ValueError, match=f"ids must lie in 0 … 255, got .*{outside}"):
            model(torch.full((1, 32), outside))


@each_model
def test_sizes_below_one_are_refused_by_name(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__}: patch_size must be .* got 0"):
        cls(dim=16, patch_size=0)


def test_melf_refuses_heads_that_do_not_divide_its_width():
    with pytest.raises(ValueError, match="heads=3 must divide d_model=16"):
        MELF(dim=16, n_heads=3)


@each_model
def test_the_published_models_cannot_be_streamed(cls):
    assert not hasattr(cls, "run")  # what reads its own target has nothing to sample from
