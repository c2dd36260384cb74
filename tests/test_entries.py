"""Who enters the race: every entry can be built, and a control lacks its part and nothing else."""

import pytest
import torch

from qllk.model.families import build, count_parameters
from qllk.presets import PRESETS
from qllk.study import entries

QLLK_3 = entries.ENTRIES["qllk-3"]


@pytest.mark.parametrize("entry", entries.ENTRIES)
def test_every_size_of_every_entry_can_be_built(entry):
    with torch.device("meta"):
        for spec in entries.ENTRIES[entry]:
            build(spec)


def test_every_preset_is_an_entry_and_every_control_too():
    assert {*PRESETS, *entries.RACE, *entries.CONTROLS} <= set(entries.ENTRIES)
    assert entries.CONTROLS[0] in entries.RACE
    assert all(entries.ENTRIES[name] is sizes for name, sizes in entries.RACE.items())


def test_the_sizes_of_qllk_3_are_the_preset_in_other_sizes():
    preset = PRESETS["qllk-3"]
    assert len({spec.d_model for spec in QLLK_3}) == len(QLLK_3) > 1
    for spec in QLLK_3:
        sizes = {name: getattr(preset, name) for name in ("d_model", "layers", "mlp")}
        assert spec.but(**sizes) == preset


@pytest.mark.parametrize(
    ("control", "fields"),
    [
        ("qllk-3 without recall", {"recall"}),
        ("qllk-3 without n-grams", {"ngrams"}),
        ("qllk-3 without memory", {"recall"}),
        ("attention instead of recall", {"recall", "mixers", "positions"}),
    ],
)
def test_a_control_of_qllk_3_has_its_sizes_and_differs_in_its_part_only(control, fields):
    for spec, other in zip(QLLK_3, entries.ENTRIES[control], strict=True):
        assert other != spec
        assert other.but(**{field: getattr(spec, field) for field in fields}) == spec


def test_attention_takes_the_last_mixer_only():
    for spec, other in zip(QLLK_3, entries.ENTRIES["attention instead of recall"], strict=True):
        assert len(other.mixers) == other.layers
        assert other.mixers[:-1] == spec.mixers * (spec.layers - 1)
        assert other.mixers[-1] == ("softmax", {"heads": spec.d_model // 32})
        assert other.positions == ("rotary", {})
        assert other.recall is None


def test_a_recall_without_memory_has_the_same_weights_and_finds_nothing():
    ids = torch.tensor([list(b"to be, or not to be, that is: to be, or not to be.")])
    found = []
    for entry in ("qllk-3", "qllk-3 without memory"):
        model = build(entries.ENTRIES[entry][0])
        found.append((model.recall(ids)[1] >= 0).sum().item())  # ids that followed a context
        weights = {name: value.shape for name, value in model.state_dict().items()}
        assert weights == {
            name: value.shape for name, value in build(QLLK_3[0]).state_dict().items()
        }
    assert found[0] > 10 * found[1]


def test_the_gpts_with_n_grams_have_the_tables_of_qllk_3_and_every_size_once():
    gpts = entries.ENTRIES["gpt with n-grams"]
    sizes = {(spec.d_model, spec.layers) for spec in gpts}
    assert sizes == {(width, layers) for width in (64, 96, 128) for layers in (1, 2, 3, 4)}
    assert len(gpts) == len(sizes)
    for spec in gpts:
        assert spec.ngrams == PRESETS["qllk-3"].ngrams
        assert spec.mixers == (("softmax", {"heads": spec.d_model // 32}),)
        assert (spec.positions[0], spec.mlp[0]) == ("rotary", "relu2")


def test_the_models_of_the_field_are_as_large_as_each_other_but_for_tables_of_n_grams():
    sizes = {name: count_parameters(build(spec)) for name, spec in entries.FIELD.items()}
    transformer = sizes["Transformer"]
    for name, size in sizes.items():
        if "qllk" not in name.lower():  # whose patches and whose recall come on top
            assert abs(size / transformer - 1) < 0.15, name
        (with_tables,) = entries.ENTRIES[f"{name} with n-grams"]
        assert with_tables.but(ngrams=None) == entries.FIELD[name]
    assert entries.ENTRIES["small qllk-3 with n-grams"] == (PRESETS["qllk-3-nano"],)
