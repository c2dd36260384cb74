"""Lesson 12: its text and its floor, what a part changes, and the verdicts of its claims."""

import math

import numpy as np
import pytest
import torch
import transformers

from qllk import Recipe
from qllk.lab import ledger
from qllk.lab.lessons import parts
from qllk.lab.lessons.exercises.parts import rotate
from qllk.lab.pictures.charts import page_html
from qllk.model.families import build
from qllk.model.positions import Sinusoidal

CLOSE, LOW, HIGH = [1.5, 1.6, 1.55], [1.1, 1.11, 1.12], [1.9, 1.91, 1.92]


def evidence(better=LOW, worse=HIGH, tanh=1.2, **changes):
    """All three parts of the last claim are ahead by `better` and `worse`."""
    losses = {
        "norm": {"rms": better, "layer": worse},
        "mlp": {"gelu": worse, "swiglu": better},
        "positions": {"rotary": better, "learned": worse},
    }
    learned = {"rms": 1.2, "tanh": tanh, "nothing": 1.8}
    return parts.Evidence(losses, learned, **changes)


def verdicts(seen):
    return {finding.id: finding.verdict for finding in ledger.judge(parts.CLAIMS, seen)}


def test_both_norms_hold_if_both_learn():
    assert verdicts(evidence())["L30"] == "holds"
    assert verdicts(evidence(tanh=1.9))["L30"] == "holds in part"
    nothing = parts.Evidence(evidence().losses, {"rms": 1.9, "tanh": 1.9, "nothing": 1.8})
    assert verdicts(nothing)["L30"] == "does not hold"


def test_switches_hold_if_each_acts_and_learns():
    assert verdicts(evidence(output=parts.our_output))["L54"] == "holds"
    found = {f.id: f for f in ledger.judge(parts.CLAIMS, evidence())}["L54"]
    assert found.verdict == "holds in part"
    assert found.measured == (
        "rope has no effect, rmsnorm cannot be trained, swiglu cannot be trained, mask works"
    )
    sees_more = evidence(output=lambda option: torch.tensor(1.0 if option == "mask" else 0.0))
    assert verdicts(sees_more)["L54"] == "does not hold"


def test_the_published_block_runs_with_each_switch_until_it_learns():
    x = torch.randn(2, 5, 12)
    for option in ("rope", "rmsnorm", "swiglu", "mask"):
        block = parts.Switches(12, **{option: True})
        assert block(x).isfinite().all()
        if option in ("rmsnorm", "swiglu"):
            with pytest.raises(AttributeError, match="'NoneType' object has no attribute"):
                block.learn(x)
        else:
            block.learn(x)


def test_what_cannot_be_tested_here_says_so():
    assert verdicts(evidence())["L59"] == "not tested here"


def test_more_seeds_are_needed_for_smaller_gaps():
    control = [1.0, 1.0, 1.0]
    assert parts.seeds_needed([0.875, 0.75, 1.0], control) == 7  # mean and deviation 1/8
    assert parts.seeds_needed([1.125, 1.25, 1.0], control) == 7
    assert parts.seeds_needed([0.984375, 0.859375, 1.109375], control) == 256  # mean 1/64
    assert parts.seeds_needed([0.1, 0.11, 0.12], control) == 2
    assert parts.seeds_needed(control, control) == math.inf


def test_improvements_hold_if_all_three_are_ahead_by_more_than_luck():
    assert verdicts(evidence())["L59b"] == "holds"
    assert verdicts(evidence(better=HIGH, worse=LOW))["L59b"] == "does not hold"
    assert verdicts(evidence(better=CLOSE, worse=[1.6, 1.5, 1.55]))["L59b"] == "does not hold"
    one = evidence()
    one.losses["positions"]["rotary"] = HIGH
    assert verdicts(one)["L59b"] == "holds in part"


def test_the_floor_of_the_text_is_what_its_own_table_pays():
    text = parts.two_letter_text()
    letters = np.concatenate((text.valid,)) - ord("a")
    chances = parts._TABLE[letters[:-2], letters[1:-1], letters[2:]]
    assert -np.log(chances).mean() == pytest.approx(text.floor, abs=0.02)
    assert set(letters) == set(range(8))
    assert text.floor < 0.6 * math.log(8)


def test_each_swap_changes_one_part_and_only_that():
    for part, choices in parts.SWAPS.items():
        assert next(iter(choices.values())) == {}
        for change in choices.values():
            allowed = {"norm", "norm_in", "norm_out"} if part == "norm" else {part}
            assert set(change) <= allowed
            build(parts.BASE.but(**change), seed=0)


def test_training_the_swaps_trains_the_base_once_and_every_other_with_all_seeds():
    recipe = Recipe(steps=1, batch=1, window=8)
    losses = parts.train_swaps(recipe, seeds=2)
    assert losses["norm"]["rms"] is losses["mlp"]["gelu"] is losses["positions"]["rotary"]
    assert all(len(nats) == 2 for choices in losses.values() for nats in choices.values())
    assert {part: set(found) for part, found in losses.items()} == {
        part: set(choices) for part, choices in parts.SWAPS.items()
    }


def test_what_luck_does_not_explain_is_counted():
    losses = {"norm": {"rms": CLOSE, "layer": CLOSE[::-1], "tanh": HIGH}, "mlp": {"gelu": LOW}}
    assert parts.decided(losses) == 1
    lines = parts.swap_lines(losses)
    assert lines[1].endswith("too close")
    assert lines[2].endswith("behind")


def test_the_series_is_right_near_zero_and_wrong_far_away():
    assert parts.published_swish(1.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert parts.published_swish(9.0) == pytest.approx(-3.6, abs=0.05)
    assert parts.published_swish(10.0) == pytest.approx(-0.37, abs=0.01)


def test_the_rotation_of_the_exercise_is_that_of_transformers():
    q, t = torch.randn(5, 8, dtype=torch.float64), torch.arange(2, 7).double()
    llama = transformers.models.llama.modeling_llama
    angles = t[:, None] * 10_000.0 ** -(torch.arange(4) / 4)
    cos, sin = (torch.cat((f(angles), f(angles)), dim=-1)[None] for f in (torch.cos, torch.sin))
    theirs, _ = llama.apply_rotary_pos_emb(q[None, None], q[None, None], cos, sin)
    torch.testing.assert_close(rotate(q, t), theirs[0, 0], atol=1e-6, rtol=0)


def test_the_waves_of_the_lesson_are_those_of_transformers():
    gptj = transformers.models.gptj.modeling_gptj
    waves = Sinusoidal(8).add(torch.zeros(1, 20, 8), 0)[0]
    torch.testing.assert_close(waves, gptj.create_sinusoidal_positions(20, 8), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "alone"),
    [
        ("none", True),
        ("rotary", True),
        ("relative", True),
        ("learned", False),
        ("sinusoidal", False),
    ],
)
def test_scores_depend_on_the_distance_alone_where_they_should(kind, alone):
    table = parts.scores(kind)
    moved = (table[1:, 1:] - table[:-1, :-1]).tril().abs().max().item()
    assert (moved < 1e-5) == alone
    assert ("distance alone" in parts.by_place(kind)[2].digest) == alone


def test_every_control_changes_the_picture():
    pages = {page_html(parts.by_place(kind)) for kind in parts.POSITIONS}
    assert len(pages) == 5
    assert len({page_html(parts.by_place("rotary", query)) for query in (3, 7, 11, 15)}) == 4


def test_the_widget_draws_what_the_controls_ask_for():
    explorer = parts.by_place.widget()
    explorer.controls["kind"].value = "learned"
    explorer.wait()
    assert "scores with learned positions" in explorer.picture.value
