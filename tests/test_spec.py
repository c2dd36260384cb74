"""Specs as plain data: what they refuse, how they change, and their way through JSON."""

import json

import pytest

from qllk.spec import Patch, Spec

CONV = ("conv", {"width": 3})
SOFTMAX = ("softmax", {"heads": 2})
BASE = Spec(d_model=16, layers=2, mixers=(CONV,))
ENCODER = BASE.but(mixers=(SOFTMAX,), family="encoder")
SEQ2SEQ = BASE.but(mixers=(SOFTMAX,), family="encoder-decoder", cross=SOFTMAX)


def test_a_spec_refuses_sizes_below_one_by_name():
    for field, value in (("d_model", 0), ("layers", -1), ("vocab_size", 2.0), ("layers", True)):
        with pytest.raises(ValueError, match=f"Spec: {field} must be a whole number above 0, got"):
            BASE.but(**{field: value})
    with pytest.raises(ValueError, match="Patch: size must be a whole number above 0, got 0"):
        Patch(size=0, d_model=8, layers=1, mixers=(CONV,))


def test_a_spec_refuses_parts_that_are_not_pairs():
    for mixers in ((), "conv", ("conv",), (("conv",),), (("conv", {}, 1),)):
        with pytest.raises(
            ValueError, match=r"Spec.mixers must be .*pairs? \(name, options\), got"
        ):
            BASE.but(mixers=mixers)
    with pytest.raises(ValueError, match=r"Spec.mlp must be a pair \(name, options\), got 'gelu'"):
        BASE.but(mlp="gelu")


def test_a_name_alone_is_a_part_without_options():
    pair, name = BASE.but(norm=("layer", {}), head=["linear", {}]), BASE.but(norm="layer")
    assert pair == name
    assert name.norm == ("layer", {})
    with pytest.raises(ValueError, match=r"Spec.norm must be a pair \(name, options\), got 3"):
        BASE.but(norm=3)


def test_a_spec_refuses_fields_of_another_family():
    patch = Patch(size=3, d_model=8, layers=1, mixers=(CONV,))
    for field, value, family in (
        ("cross", SOFTMAX, "encoder-decoder"),
        ("segments", 2, "encoder"),
        ("patch", patch, "decoder"),
    ):
        wrong = ENCODER if field == "patch" else BASE
        with pytest.raises(ValueError, match=f"{field} is for the family '{family}', not '"):
            wrong.but(**{field: value})
    with pytest.raises(ValueError, match="an encoder-decoder needs cross, a pair"):
        SEQ2SEQ.but(cross=None)
    with pytest.raises(ValueError, match="context must be a whole number above 0, got 'long'"):
        BASE.but(context="long")
    with pytest.raises(ValueError, match="segments must be a whole number above 0, got -1"):
        ENCODER.but(segments=-1)


def test_a_spec_refuses_a_dropout_of_one():
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1.0"):
        BASE.but(dropout=1.0)


@pytest.mark.parametrize("after", [-1, 2])
def test_a_patch_leaves_a_layer_before_it(after):
    patch = Patch(size=2, d_model=8, layers=1, mixers=(CONV,), after=after)
    with pytest.raises(
        ValueError, match=f"Patch.after={after} must be 0 or more and leave .* of the 2 layers"
    ):
        BASE.but(patch=patch)


def test_a_spec_is_frozen_and_changed_by_but():
    with pytest.raises(AttributeError):
        BASE.layers = 3
    assert BASE.but(layers=3).layers == 3
    assert BASE.layers == 2


def test_bad_json_is_refused():
    with pytest.raises(ValueError, match="a Spec must be JSON: "):
        Spec.from_json("{layers: 2}")
    with pytest.raises(ValueError, match="Spec must be a JSON object, got list"):
        Spec.from_json("[]")


def test_json_with_an_unknown_or_missing_field_is_refused():
    values = json.loads(BASE.to_json())
    with pytest.raises(ValueError, match="Spec has no field 'leyers'; it has d_model, layers, "):
        Spec.from_json(json.dumps(values | {"leyers": 3}))
    patch = {"size": 2, "d_model": 8, "layers": 1, "mixers": [["conv", {}]], "stride": 2}
    with pytest.raises(ValueError, match="Patch has no field 'stride'; it has size, "):
        Spec.from_json(json.dumps(values | {"patch": patch}))
    del values["d_model"]
    with pytest.raises(ValueError, match=r"not a Spec: .*'d_model'"):
        Spec.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("context", "window", "split"), [(None, 50, (1, 50)), (80, 50, (1, 50)), (16, 50, (3, 16))]
)
def test_a_window_is_split_into_rows_no_longer_than_the_context(context, window, split):
    assert BASE.but(context=context).split_window(window) == split


def test_a_window_below_one_cannot_be_split():
    with pytest.raises(ValueError, match="window must be a whole number above 0, got 0"):
        BASE.split_window(0)


def test_a_spec_has_a_bound_of_layers_and_of_letters():
    assert BASE.but(layers=256).depth == 256
    with pytest.raises(ValueError, match="at most 256 layers can be built, got 10000"):
        BASE.but(layers=10_000)
    patch = Patch(size=3, d_model=8, layers=255, mixers=(CONV,))
    with pytest.raises(ValueError, match="at most 256 layers can be built, got 257"):
        BASE.but(patch=patch)
    with pytest.raises(ValueError, match=r"a Spec has at most 100,000 characters, got 200,000"):
        Spec.from_json(" " * 200_000)


def test_a_spec_is_tied_or_not():
    with pytest.raises(ValueError, match=r"Spec\.tied must be true or false, got 'false'"):
        BASE.but(tied="false")
