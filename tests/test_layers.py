"""Norms, MLPs and heads equal their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import same, vectors

from qllk.checks import build_part
from qllk.model.families import count_parameters
from qllk.model.layers import HEADS, MLPS, NORMS, _ScaledToRMS

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


def test_a_squared_relu_and_its_gradient_are_those_of_its_parts_bit_for_bit():
    x = torch.randn(3, 50)
    x[0, :9] = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e38, math.inf, -math.inf, math.nan, 1.0])
    weight, found = torch.randn(3, 50), []
    for function in (MLPS["relu2"](4).activation, lambda x: F.relu(x).square()):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        found.append((y, *torch.autograd.grad((y * weight).sum(), leaf)))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", [name for name in MLPS if name != "none"])
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
        norm = build_part(NORMS, (name, dict(options)), "norm", (2,)).double()
        same(norm(x), torch.tensor([[row]], dtype=torch.float64))


@pytest.mark.parametrize("shape", [(2, 5, 8), (3, 8), (8,), (2, 1, 8), (2, 3, 5, 8)], ids=str)
@pytest.mark.parametrize("eps", [None, 0.1])
def test_an_rms_norm_and_its_gradients_are_those_of_torch(shape, eps):
    norm = NORMS["rms"](8, eps=eps).double()
    torch.nn.init.normal_(norm.weight)
    x, weight = vectors(*shape).requires_grad_(), vectors(*shape)
    y, expected = norm(x), F.rms_norm(x, (8,), norm.weight, eps)
    assert torch.equal(y, expected)
    leaves = (x, norm.weight)
    mine, other = (torch.autograd.grad((out * weight).sum(), leaves) for out in (y, expected))
    for found, wanted in zip(mine, other, strict=True):
        same(found, wanted, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x, w: _ScaledToRMS.apply(x, w, 0.1), leaves)


def test_an_rms_norm_takes_vectors_that_do_not_stand_together():
    norm, x = NORMS["rms"](8).double(), vectors(2, 8, 5).requires_grad_()
    y, expected = norm(x.transpose(1, 2)), F.rms_norm(x.transpose(1, 2), (8,))
    assert torch.equal(y, expected)
    same(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (y, expected)), atol=1e-12)


@pytest.mark.parametrize("part", [NORMS["rms"](64), MLPS["relu2"](64)], ids=["rms", "relu2"])
def test_a_part_gives_the_same_bits_with_a_gradient_and_without(part):
    x = torch.randn(2, 300, 64)
    with torch.no_grad():
        expected = part(x)
    assert torch.equal(part(x), expected)


def test_a_norm_of_zeros_is_zero_and_has_a_finite_gradient():
    norm, x = NORMS["rms"](8), torch.zeros(1, 3, 8, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    assert not y.any()
    assert x.grad.isfinite().all()


def test_an_rms_norm_can_do_without_weights():
    norm = build_part(NORMS, ("rms", {"elementwise_affine": False}), "norm", (8,))
    assert count_parameters(norm) == 0


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_takes_half_precision_without_a_warning(name, recwarn):
    torch.set_warn_always(True)  # else torch says it once in a process
    try:
        y = build_part(NORMS, (name, {}), "norm", (4,))(torch.randn(2, 4).bfloat16())
    finally:
        torch.set_warn_always(False)
    assert y.isfinite().all()
    assert not [warning.message for warning in recwarn]


def test_the_masked_head_computes_its_formula():
    head, x = HEADS["masked"](4, 9).double(), vectors(2, 3, 4)
    inside = MLP_FORMULAS["gelu-exact"](x @ head.transform.weight.T + head.transform.bias)
    same(head(x), F.layer_norm(inside, (4,)) @ head.weight.T + head.bias)
