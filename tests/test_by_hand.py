"""randyGPT by hand: every gradient against the library's own model, and by finite differences."""

import argparse
import inspect
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import same

from qllk.model.families import build
from qllk.spec import Spec
from qllk.study import by_hand
from qllk.study.by_hand import (
    ATTENTION,
    IGNORED,
    RANDYGPT,
    Adam,
    Shape,
    compare,
    forward,
    gradients,
    init_weights,
    loss_by_position,
    main,
    train,
    workers,
)

SHAPE = Shape(vocab_size=11, context=9, d_model=12, layers=2, heads=3)
PRECISIONS = {"float64": (np.float64, 1e-10), "float32": (np.float32, 1e-5)}

each_precision = pytest.mark.parametrize(("dtype", "atol"), PRECISIONS.values(), ids=PRECISIONS)


def batch(shape=SHAPE, B=5, T=None, seed=0):
    """Random ids and targets, a third of them ignored, in some rows more than in others."""
    draw = np.random.default_rng(seed)
    ids, targets = draw.integers(shape.vocab_size, size=(2, B, T or shape.context))
    targets[draw.random(targets.shape) < np.linspace(0, 0.6, B)[:, None]] = IGNORED
    return ids, targets


def lively(weights):
    """Weights of a trained model's size: with those of a new one the attention is nearly even."""
    return {name: 2 * w for name, w in weights.items()}


def twin(shape, weights):
    """The same model from the library's parts, and its parameters under our names."""
    spec = Spec(
        d_model=shape.d_model,
        layers=shape.layers,
        mixers=(("softmax", {"heads": shape.heads}),),
        mlp=("relu2", {"ratio": 4}),
        positions="learned",
        context=shape.context,
        vocab_size=shape.vocab_size,
    )
    model = build(spec).to(torch.tensor(weights["head"]).dtype)
    model.norm = torch.nn.Identity()
    for module in model.modules():
        if isinstance(module, torch.nn.RMSNorm):  # its weight is one, as good as none
            module.eps = by_hand._EPSILON
    named = {"embed": model.embed.weight, "positions": model.positions.table.weight}
    for i, block in enumerate(model.body.blocks):
        named |= {f"{i}.qkv": block.mix.qkv.weight, f"{i}.out": block.mix.out.weight}
        named |= {f"{i}.up": block.mlp.up.weight, f"{i}.down": block.mlp.out.weight}
    named["head"] = model.head.weight
    assert named.keys() == weights.keys()
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(turned(name, torch.tensor(weights[name])))
    return model, named


def turned(name, w):
    """Between the layouts: a torch Linear keeps its matrix as (outputs, inputs)."""
    return w if name in ("embed", "positions") else w.T


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("shape", "count"), [(RANDYGPT["0.1"], 13_184), (RANDYGPT["0.3"], 811_776)]
)
def test_the_originals_shapes_have_their_parameters(shape, count):
    assert sum(w.size for w in init_weights(shape).values()) == count


def test_the_attention_is_a_third_of_the_original():
    weights = init_weights(RANDYGPT["0.3"])
    frozen = sum(w.size for name, w in weights.items() if name.split(".")[-1] in ATTENTION)
    assert frozen == 262_144


@pytest.mark.parametrize("shape", RANDYGPT.values(), ids=RANDYGPT)
def test_a_new_model_knows_nothing(shape):
    loss, _ = gradients(shape, init_weights(shape), *batch(shape))
    assert abs(loss - np.log(shape.vocab_size)) < 0.1


# ---------------------------------------------------------------- gradients


@each_precision
@pytest.mark.parametrize("T", [1, 6, 9])
def test_logits_loss_and_every_gradient_equal_torchs(dtype, atol, T):
    weights, (ids, targets) = lively(init_weights(SHAPE, dtype=dtype)), batch(T=T)
    loss, grads = gradients(SHAPE, weights, ids, targets)
    model, named = twin(SHAPE, weights)
    logits = model(torch.tensor(ids))
    expected = F.cross_entropy(
        logits.flatten(0, 1), torch.tensor(targets).flatten(), ignore_index=IGNORED
    )
    expected.backward()
    same(torch.tensor(forward(SHAPE, weights, ids)[0]), logits.detach(), atol)
    same(torch.tensor(loss), expected.detach(), atol)
    assert grads.keys() == named.keys()
    for name, parameter in named.items():
        assert parameter.grad.abs().max() > 100 * atol, f"{name}: too small to be compared"
        same(torch.tensor(grads[name]), turned(name, parameter.grad), atol)


@pytest.mark.parametrize("kind", ["embed", "positions", "0.qkv", "0.out", "1.up", "1.down", "head"])
def test_the_gradient_is_how_fast_the_loss_grows(kind):
    weights, (ids, targets) = lively(init_weights(SHAPE, dtype=np.float64)), batch()
    _, grads = gradients(SHAPE, weights, ids, targets)
    where = np.unravel_index(np.abs(grads[kind]).argmax(), grads[kind].shape)
    losses = []
    for nudge in (1e-5, -1e-5):
        nudged = weights[kind].copy()
        nudged[where] += nudge
        losses.append(gradients(SHAPE, weights | {kind: nudged}, ids, targets)[0])
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(grads[kind][where], abs=1e-8)


def test_no_number_is_too_large_for_the_loss():
    losses, dlogits = by_hand._cross_entropy(np.array([[[1e4, 0.0, -1e4]]]), np.array([[1]]))
    assert losses.item() == 1e4
    assert dlogits.tolist() == [[[1.0, -1.0, 0.0]]]


def test_the_future_changes_nothing():
    weights, (ids, _) = init_weights(SHAPE, dtype=np.float64), batch()
    changed = ids.copy()
    changed[:, 5:] = (changed[:, 5:] + 1) % SHAPE.vocab_size
    before, after = (forward(SHAPE, weights, x)[0] for x in (ids, changed))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert not np.allclose(before[:, 5], after[:, 5])


# ---------------------------------------------------------------- data parallelism


def check_shares(shares, run):
    weights, (ids, targets) = init_weights(SHAPE, dtype=np.float64), batch()
    loss, grads = gradients(SHAPE, weights, ids, targets)
    shared_loss, shared = gradients(SHAPE, weights, ids, targets, shares, run)
    assert shared_loss == pytest.approx(loss, abs=1e-12)
    for name, grad in grads.items():
        np.testing.assert_allclose(shared[name], grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shares", [2, 3, 5])
def test_shares_with_unequal_rows_and_targets_add_up_to_the_batch(shares):
    check_shares(shares, map)


def process_id(_):
    return os.getpid()


def test_two_processes_give_the_gradients_of_one():
    with workers(2) as run:
        check_shares(2, run)
        assert os.getpid() not in run(process_id, range(2))


def test_a_share_that_trains_nothing_adds_nothing():
    weights, (ids, targets) = init_weights(SHAPE, dtype=np.float64), batch(B=2)
    targets[1] = IGNORED
    _, alone = gradients(SHAPE, weights, ids[:1], targets[:1])
    _, shared = gradients(SHAPE, weights, ids, targets, shares=2)
    np.testing.assert_allclose(shared["0.qkv"], alone["0.qkv"], rtol=0, atol=1e-12)


def test_training_over_shares_equals_training_alone(monkeypatch):
    text = np.random.default_rng(0).integers(11, size=60)
    alone, shared = (init_weights(SHAPE, dtype=np.float64) for _ in range(2))
    losses = train(SHAPE, alone, text, steps=3, batch=5)
    monkeypatch.setattr(by_hand, "start_processes", InThisProcess)
    np.testing.assert_allclose(train(SHAPE, shared, text, steps=3, batch=5, processes=2), losses)
    np.testing.assert_allclose(shared["0.qkv"], alone["0.qkv"], rtol=0, atol=1e-10)


class InThisProcess:
    """Stands in for a pool, which takes seconds to start."""

    map = staticmethod(map)

    def __init__(self, processes):
        assert processes == 2

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


# ---------------------------------------------------------------- learning


def test_adam_equals_torchs():
    draw = np.random.default_rng(0)
    ours = {"a": draw.normal(size=(3, 4)), "b": draw.normal(size=(5, 2))}
    theirs = {name: torch.nn.Parameter(torch.tensor(w)) for name, w in ours.items()}
    adam, expected = Adam(ours, lr=0.1), torch.optim.Adam(theirs.values(), lr=0.1)
    for size in (1.0, 1e-9, 100.0, 0.0, 1.0):  # 1e-9: where eps decides
        grads = {name: size * draw.normal(size=w.shape) for name, w in ours.items()}
        adam.step(grads)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(grads[name])
        expected.step()
        for name, parameter in theirs.items():
            same(torch.tensor(ours[name]), parameter.detach(), 1e-12)


def test_a_tiny_text_is_learned_by_heart():
    alphabet, text = np.unique(list("hello world, hello word. "), return_inverse=True)
    shape = replace(RANDYGPT["0.1"], vocab_size=len(alphabet), context=16)
    weights = init_weights(shape)
    losses = train(shape, weights, np.tile(text, 4), steps=250, batch=8, lr=0.01)
    assert losses[0] > 2.0
    assert losses[-1] < 0.2  # the first characters of a window can only be guessed
    ids = text[None, :16]
    logits = forward(shape, weights, ids)[0]
    assert "".join(alphabet[logits[0, 3:].argmax(-1)]) == "o world, hell"


@pytest.mark.slow
def test_freezing_the_attention_and_training_one_position_cost_held_out_nats():
    text = np.frombuffer(inspect.getsource(argparse).encode(), np.uint8) & 127
    shape = Shape(vocab_size=128, context=64, d_model=32, layers=1, heads=4)
    rows = list(compare(shape, text[:-4096], text[-4096:], steps=200, batch=16, lr=0.01))
    everything, frozen, one, both = (row["all"] for row in rows)
    assert everything < frozen - 0.07
    assert everything < one - 0.5
    assert everything < both - 0.5
    lasts = [row["last"] for row in rows]
    assert lasts[0] < lasts[2] - 0.1  # worse even at the only place that it learns


def test_what_is_frozen_stays_and_all_else_moves():
    before, after = init_weights(SHAPE), init_weights(SHAPE)
    text = np.arange(40) % SHAPE.vocab_size
    train(SHAPE, after, text, steps=2, frozen=ATTENTION)
    stayed = {name for name in before if (before[name] == after[name]).all()}
    assert stayed == {"0.qkv", "0.out", "1.qkv", "1.out"}


def test_training_the_last_position_hears_of_no_other_target(monkeypatch):
    seen = []

    def spy(shape, weights, ids, targets, *rest):
        seen.append((targets != IGNORED).sum(0).tolist())
        return gradients(shape, weights, ids, targets, *rest)

    monkeypatch.setattr(by_hand, "gradients", spy)
    text = np.arange(40) % SHAPE.vocab_size
    for last in (None, 9, 2, 1):
        train(SHAPE, init_weights(SHAPE), text, steps=1, batch=4, last=last)
    assert seen == [[4] * 9, [4] * 9, [0] * 7 + [4, 4], [0] * 8 + [4]]


def test_loss_by_position_is_the_mean_over_neighbouring_windows():
    weights, text = init_weights(SHAPE, dtype=np.float64), batch(B=1, T=9)[0].repeat(5)
    nats = loss_by_position(SHAPE, weights, text)
    windows = np.stack([text[start : start + 10] for start in (0, 9, 18, 27)])
    loss, _ = gradients(SHAPE, weights, windows[:, :-1], windows[:, 1:])
    assert nats.shape == (9,)
    assert nats.mean() == pytest.approx(loss, abs=1e-12)


# ---------------------------------------------------------------- what goes wrong


def test_a_shape_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="heads=5 must divide d_model=12"):
        replace(SHAPE, heads=5)
    with pytest.raises(ValueError, match="Shape: layers must be a whole number above 0, got 0"):
        replace(SHAPE, layers=0)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros(3, int), r"shape \(batch, time\).*got \(3,\)"),
        (np.zeros((0, 3), int), "neither empty"),
        (np.zeros((1, 3)), "whole numbers.*float64"),
        (np.zeros((1, 10), int), "10 long, but the context is 9"),
        (np.array([[0, -1]]), "must lie in 0 … 10, got -1 … 0"),
        (np.array([[0, 11]]), "must lie in 0 … 10, got 0 … 11"),
    ],
)
def test_ids_that_do_not_fit_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        forward(SHAPE, init_weights(SHAPE), ids)


@pytest.mark.parametrize(
    ("targets", "shares", "message"),
    [
        ([[1, 2]], 1, r"have the shape of ids, \(2, 2\).*got \(1, 2\)"),
        ([[IGNORED] * 2] * 2, 1, "not all be IGNORED.*with 0 targets that count"),
        ([[1, 11]] * 2, 1, "targets must lie in 0 … 10, got 1 … 11"),
        ([[1, -2]] * 2, 1, "targets must lie in 0 … 10, got -2 … 1"),
        ([[1, 2]] * 2, 3, "shares=3 must lie in 1 … 2"),
        ([[1, 2]] * 2, 0, "shares=0 must lie in 1 … 2"),
    ],
)
def test_targets_and_shares_that_do_not_fit_are_refused(targets, shares, message):
    ids = np.zeros((2, 2), int)
    with pytest.raises(ValueError, match=message):
        gradients(SHAPE, init_weights(SHAPE), ids, np.array(targets), shares)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen": ("qvk",)}, "no part 'qvk' to freeze; choose from down, embed, head"),
        ({"last": 0}, "last=0 must lie in 1 … 9"),
        ({"last": 10}, "last=10 must lie in 1 … 9"),
        ({"batch": 0}, "train: batch must be a whole number above 0, got 0"),
        ({"processes": 0}, "train: processes must be a whole number above 0, got 0"),
    ],
)
def test_training_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train(SHAPE, init_weights(SHAPE), np.zeros(40, int), steps=1, **options)


def test_a_text_shorter_than_a_window_is_refused():
    for run in (lambda text: train(SHAPE, init_weights(SHAPE), text, steps=1),
                lambda text: loss_by_position(SHAPE, init_weights(SHAPE), text)):  # fmt: skip
        with pytest.raises(ValueError, match="9 characters, a window needs 10"):
            run(np.zeros(9, int))


# ---------------------------------------------------------------- the command


def test_the_command_prints_a_row_for_each_variant(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_bytes(b"the cat sat on the mat. " * 80)
    assert main(["--corpus", str(path), "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "text, 11 characters, 2 steps" in out
    rows = [line for line in out.splitlines() if line.startswith(tuple(by_hand._VARIANTS))]
    assert [len(row.split()[-3:]) for row in rows] == [3] * 4
    assert "bigram table" in out


def test_the_command_says_what_is_wrong(capsys):
    assert main(["--corpus", "no such text"]) == 1
    assert "no corpus 'no such text'" in capsys.readouterr().err
