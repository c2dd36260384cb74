"""Lesson 08: the measurements behind its pictures, and its box of parts."""

import itertools

import pytest
import torch
from helpers import same

from qllk import build
from qllk.lab import minimize
from qllk.lab.lessons import assembly
from qllk.lab.lessons.exercises.assembly import Model
from qllk.model import families
from qllk.presets import PRESETS
from qllk.study import published


def as_published(layer, x):
    x = x + layer[0](x)
    return layer[1:](x)


@pytest.mark.parametrize("name", PRESETS)
def test_the_parts_of_a_preset_add_up_to_the_whole(name):
    with torch.device("meta"):
        model = build(name)
    assert sum(assembly.parts(model).values()) == families.count_parameters(model)


def test_the_parts_of_the_published_models_are_these():
    old, new = assembly.parts(published.QLLK10()), assembly.parts(published.QLLK11())
    assert old == {
        "embedding": 256 * 256,
        "hashing": 256 * 256,
        "patches": 0,
        "mixers": 4 * 4 * (256 * 256 + 256),
        "MLPs": 4 * (2 * 256 * 512 + 512 + 256),
        "norms": 4 * 4 * 256,
        "head": 8 * 256 * 257,
    }
    assert new["patches"] == 2 * (8 * 256 * 256 + 256)
    assert sum(new.values()) == 4_404_992


def test_layer_by_layer_is_the_published_forward():
    model = published.QLLK10(dim=8, n_layers=3).double()
    ids = torch.randint(256, (2, 24))
    xs, logits = assembly.layer_by_layer(model, ids, as_published)
    same(logits, model(ids))
    assert [tuple(x.shape) for x in xs] == 4 * [(2, 3, 8)]


def test_the_next_patch_loss_ignores_what_a_patch_says_of_itself():
    ids = torch.randint(256, (1, 24))
    own = 50.0 * torch.nn.functional.one_hot(ids, 256)  # as a leak would have it
    later = 50.0 * torch.nn.functional.one_hot(ids.roll(-8, dims=1), 256)
    assert assembly.next_patch_loss(own, ids) > 5
    assert assembly.next_patch_loss(later, ids) < 1e-6


def test_learning_leaves_a_fixed_matrix_alone():
    model = published.QLLK11(dim=8, n_layers=1)
    model.hash_proj.requires_grad_(False).zero_()
    ids = torch.randint(256, (2, 24))
    losses = minimize(model, lambda step: assembly.next_patch_loss(model(ids), ids), 20, 1e-2)
    assert losses[-1] < losses[0]
    assert not model.hash_proj.any()


def test_the_weights_of_the_library_fit_into_the_model_of_the_lesson():
    library = build("qllk-3-nano", seed=0)
    names = assembly.weights_for_model(library)
    assert len(names) == len(library.state_dict())
    spec = library.spec
    model = Model(32, spec.ngrams.contexts, spec.recall.contexts, 4096, 4096)
    assert set(names) == set(model.state_dict())


def test_the_box_as_it_comes_is_qllk_2():
    spec = assembly.assembled("cumulative sum", 4, 8, "128 wide, 2 layers")
    assert spec == PRESETS["qllk-2"]
    known = assembly.counts("qllk-2")
    assert assembly.counts(spec.to_json()) == known
    assert "1,298,944 parameters" in known[0].title


def test_every_box_can_be_built_and_patches_take_work_away():
    for mixer, mlp, size in itertools.product(assembly.MIXERS, (1, 4), list(assembly.SIZES)[:2]):
        work = {}
        for patch in ("none", 4, 16):
            spec = assembly.assembled(mixer, mlp, patch, size)
            work[patch] = assembly.counts(spec.to_json())[1]
        assert work["none"] > work[4] > work[16]


def test_the_diagram_has_the_parts_and_the_numbers_of_the_spec():
    spec = PRESETS["qllk-3"].but(layers=3)
    diagram = assembly.whole_model(spec)
    texts = " ".join(box.text for box in diagram.boxes.values())
    assert "n-grams: 8 x\n65,536 rows" in texts
    assert "recall: 20 x\n4,096 rows" in texts
    assert "block 2" in texts
    ends = {name: [end for start, end in diagram.arrows if start == name] for name in diagram.boxes}
    assert ends["bytes"] == ["embed", "ngrams", "recall"]
    assert ends["recall"] == ["sum", "strength"]
    assert [name for name, led in ends.items() if not led] == ["logits"]
    edges = sorted(
        (box.column, box.column + box.width) for box in diagram.boxes.values() if box.row == 1
    )
    assert all(left[1] < right[0] for left, right in itertools.pairwise(edges))


def test_each_part_of_the_model_is_in_the_diagram():
    parts = {name for name, _ in Model(8, (2,), (3,), 16, 16).named_children()}
    boxes = set(assembly.whole_model().boxes)
    assert parts - {"blocks"} <= boxes
    assert boxes - parts == {"bytes", "sum", "block 0", "block 1", "total", "logits"}


def test_each_part_reads_the_stream_and_adds_to_it():
    diagram = assembly.residual_stream(blocks=2)
    assert [diagram.boxes[f"part {i}"].text for i in range(4)] == 2 * [
        "norm\nbyte mixer",
        "norm\nMLP",
    ]
    assert {("x", "part 0"), ("x", "sum 0"), ("part 0", "sum 0")} <= set(diagram.arrows)
    assert {("sum 2", "part 3"), ("sum 2", "sum 3"), ("part 3", "sum 3")} <= set(diagram.arrows)


def test_the_reach_is_that_of_the_convolutions_the_ngrams_and_the_recall():
    heat = assembly.reach()
    seen = dict(zip(heat.row_names, map(sum, heat.rows), strict=True))
    assert list(seen.values()) == [8, 15, 22, 33, 33]
    assert "two byte layers 15, two, and n-grams 22, two, and recall 33" in heat.digest
