"""Argument checks: what passes, and the words in which the rest is refused."""

import json
import math
from dataclasses import asdict, dataclass

import numpy as np
import pytest
import torch

from qllk.checks import (
    as_plain,
    check_dropout,
    check_fields,
    check_ids,
    check_positive,
    check_range,
    check_rate,
    check_same_shape,
    look_up,
)
from qllk.spec import Ngrams, Spec
from qllk.training.recipe import Recipe


@dataclass
class Size:
    width: int
    height: int = 1


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "3", None])
def test_a_size_is_a_whole_number_above_zero(wrong):
    check_positive("Size", width=1, height=2**63 - 1)
    with pytest.raises(ValueError, match=r"Size: width must be a whole number below 2\*\*63, got"):
        check_positive("Size", width=10**400)
    with pytest.raises(ValueError, match="Size: height must be a whole number above 0, got"):
        check_positive("Size", width=1, height=wrong)


def test_json_becomes_arguments_if_every_name_is_a_field():
    assert check_fields(Size, {"height": 2}) == {"height": 2}
    with pytest.raises(ValueError, match="Size has no field 'depth'; it has width, height"):
        check_fields(Size, {"width": 1, "depth": 2})
    with pytest.raises(ValueError, match="Size must be a JSON object, got list"):
        check_fields(Size, [1])


def test_a_name_that_is_not_in_a_table_lists_the_known():
    assert look_up({"b": 1, "a": 2}, "a", "letter") == 2
    with pytest.raises(ValueError, match="unknown letter 'c'; choose from a, b"):
        look_up({"b": 1, "a": 2}, "c", "letter")
    with pytest.raises(ValueError, match=r"unknown letter \['a'\]; choose from a, b"):
        look_up({"b": 1, "a": 2}, ["a"], "letter")  # as JSON may have it


def test_a_tensor_with_one_value_per_id_passes():
    ids = torch.zeros(2, 3)
    assert check_same_shape("text", ids, ids) is ids
    with pytest.raises(ValueError, match=r"text must have the shape of ids, \(2, 3\); got \(2,\)"):
        check_same_shape("text", ids[:, 0], ids)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_ids_of_any_integer_type_become_int64(dtype):
    assert check_ids(torch.tensor([[0, 9]], dtype=dtype), 10).dtype == torch.int64


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(3, dtype=torch.long), r"shape \(batch, time\).*got \(3,\) of torch.int64"),
        (torch.zeros(0, 3, dtype=torch.long), "neither empty"),
        (torch.zeros(1, 3), r"whole numbers.*of torch.float32. .* use ids\[None\]"),
        (torch.tensor([[0, 10]]), "ids must lie in 0 … 9, got 0 … 10"),
        (torch.tensor([[-1, 3]]), "ids must lie in 0 … 9, got -1 … 3"),
    ],
)
def test_ids_that_do_not_fit_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        check_ids(ids, 10)


@pytest.mark.parametrize("wrong", [0, -1.0, math.inf, math.nan, True, "1", None])
def test_a_rate_is_a_finite_number_above_zero(wrong):
    check_rate("lr", 1e-300)
    with pytest.raises(ValueError, match="lr must be a number above 0, got"):
        check_rate("lr", wrong)


def test_a_range_ends_at_its_upper_bound():
    check_range("share", 1, int | float, 1.0)
    check_range("seed", 0, int, 2**63 - 1)
    with pytest.raises(ValueError, match="share must be a number of at least 0 and at most 1, got"):
        check_range("share", 1.1, int | float, 1.0)
    for wrong in (-1, 0.5, True):
        with pytest.raises(ValueError, match="seed must be a whole number of at least 0, got"):
            check_range("seed", wrong, int, 2**63 - 1)


@pytest.mark.parametrize("wrong", [torch.tensor([[True]]), torch.tensor([[1j]])])
def test_ids_that_are_truth_values_or_complex_are_refused(wrong):
    with pytest.raises(ValueError, match=f"ids must be whole numbers .* of {wrong.dtype}"):
        check_ids(wrong, 10)


@pytest.mark.parametrize("wrong", [np.array([[1, 2]]), [[1, 2]], 3, None])
def test_ids_that_are_no_tensor_are_refused_with_the_call_that_makes_one(wrong):
    with pytest.raises(ValueError, match=r"ids must be a tensor, got .*torch\.as_tensor\(ids\)"):
        check_ids(wrong, 10)


def test_numbers_of_numpy_are_numbers_and_become_those_of_python():
    given = {"a": np.int64(4), "b": (np.float32(0.5), [np.bool_(True), torch.tensor(3)]), "c": "d"}
    plain = as_plain(given)
    assert plain == {"a": 4, "b": (0.5, [True, 3]), "c": "d"}
    assert json.loads(json.dumps(plain)) == {"a": 4, "b": [0.5, [True, 3]], "c": "d"}
    check_positive("Size", width=np.uint8(3))
    check_rate("lr", np.float16(0.5))
    check_range("seed", np.int64(0), int, 9)
    check_dropout("Spec", np.float64(0.1))
    recipe = Recipe(batch=np.int64(4), lr=np.float32(0.5), seconds=np.float64(3), compile=np.False_)
    assert all(type(value) in (int, float, str, bool) for value in asdict(recipe).values())
    spec = Spec(
        d_model=np.int64(8),
        layers=np.int32(1),
        mixers=(("conv", {"width": np.int64(3)}),),
        ngrams=Ngrams((np.int64(2),), rows=np.int64(8), dropout=np.float32(0.5)),
    )
    assert Spec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("wrong", [np.array([4]), np.array([1, 2]), np.float64(4), np.bool_(True)])
def test_what_numpy_has_besides_whole_numbers_is_no_size(wrong):
    with pytest.raises(ValueError, match="Recipe: batch must be a whole number above 0"):
        Recipe(batch=wrong)


@pytest.mark.parametrize("wrong", ["0.1", None, 1.0, -0.1, math.nan])
def test_a_dropout_is_a_probability_below_one(wrong):
    with pytest.raises(ValueError, match=r"Spec: dropout must lie in \[0, 1\), got"):
        check_dropout("Spec", wrong)
