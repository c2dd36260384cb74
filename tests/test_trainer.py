"""The trainer: each step is what it says, and a run is a function of its seed and its log."""

import math
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import BFLOAT16, SPEC, TINY

from qllk.lab.lessons.exercises import assembly
from qllk.model.families import ModelState, build, sketch
from qllk.model.layers import Dropout
from qllk.presets import PRESETS, recipe_of
from qllk.probes import baselines, evaluate, state_bytes
from qllk.study.published import QLLK11
from qllk.text import corpora, objectives, windows
from qllk.text.corpora import task
from qllk.training import checkpoint, devices, optim
from qllk.training.place import _trial_step, check_memory, move_to
from qllk.training.recipe import Recipe
from qllk.training.snapshot import Snapshot, restore_snapshot, take_snapshot
from qllk.training.trainer import Diverged, Trainer, mix_seeds

RECIPE = Recipe(steps=40, batch=4, window=24, warmup=0.1, validate_every=1000, validate_bytes=200)
CORPUS = task("markov", 4000)
FLOOR = CORPUS.floor
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def trainer(spec=SPEC, clock=None, **changes):
    options = {} if clock is None else {"clock": clock}
    return Trainer(spec, CORPUS, replace(RECIPE, **changes), **options)


def steps(run, count):
    return [next(run) for _ in range(count)]


def losses(records):
    return [record.nats for record in records]


def finite(run):
    """Whether the weights still give a finite loss."""
    return math.isfinite(run.validate(min(run.window, 256) + 1))


def same_weights(a, b):
    """Bit for bit, moments included."""
    a, b = take_snapshot(a).tensors, take_snapshot(b).tensors
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------- one step


def test_a_run_equals_the_same_written_by_hand():
    """Windows, loss, clipping, schedule and AdamW, with nothing from `optim` or `train`."""
    run = trainer(spec=SPEC.but(dropout=0.0), clip=0.5, weight_decay=0.3)
    model = build(SPEC.but(dropout=0.0), seed=0)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    adam = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        foreach=False,
    )
    for step, record in enumerate(steps(run, 12)):
        generator = torch.Generator().manual_seed(mix_seeds(0, step))
        starts = torch.randint(len(CORPUS.train) - 24, (4,), generator=generator).tolist()
        ids = torch.tensor(np.stack([CORPUS.train[s : s + 25] for s in starts])).long()
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        adam.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
        for p in model.parameters():
            p.grad *= min(1.0, 0.5 / norm)
        wave = (1 + math.cos(math.pi * step / 40)) / 2
        lr = 6e-3 * max(0.01, min(1.0, step / 40 / 0.1)) * (0.02 + 0.98 * wave)
        for group in adam.param_groups:
            group["lr"] = lr
        adam.step()
        assert record.nats == pytest.approx(loss.item(), abs=1e-5)
        assert record.grad_norm == pytest.approx(norm, rel=1e-4)
        assert norm > 0.5
        assert record.lr == pytest.approx(lr, rel=1e-12)
    for got, expected in zip(run.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


def test_a_record_tells_what_really_ran():
    record = next(trainer())
    assert (record.step, record.bytes_seen) == (1, 4 * 24)
    assert (record.device, record.precision) == ("cpu", "float32")
    assert record.bits_per_byte == record.nats / math.log(2)
    assert record.bytes_per_second == pytest.approx(96 / record.step_seconds)
    assert record.valid_nats is None
    assert list(record.state_rms) == ["byte 1 conv", "patch 1 cumsum", "byte 2 conv"]
    assert all(rms > 0 for rms in record.state_rms.values())
    assert record.rows_in_use == {}
    one_row = torch.zeros(1, 24, dtype=torch.long)
    assert record.state_bytes == state_bytes(build(SPEC).final_state(one_row))


def test_a_record_tells_how_much_of_a_recall_is_in_use_and_what_its_state_takes():
    spec = TINY["qllk-3"]
    record = next(trainer(spec))
    assert list(record.rows_in_use) == [f"recall {context}" for context in spec.recall.contexts]
    assert all(0 < share <= 1 for share in record.rows_in_use.values())
    assert record.state_bytes > 5 * spec.recall.addresses * len(spec.recall.contexts)


def test_the_schedule_at_its_corners():
    def share(progress, warmup=0.2):
        return optim.warmup_cosine(progress, warmup=warmup, final=0.1)

    assert share(0.0) == pytest.approx(0.01)
    assert share(0.1) == pytest.approx(0.5 * share(0.1, warmup=0.0))
    assert share(0.2) == share(0.2, warmup=0.0)
    assert share(0.5) == pytest.approx(0.55)
    assert share(1.0) == pytest.approx(0.1) == share(1.5)
    assert share(0.0, warmup=0.0) == 1.0


def test_only_matrices_are_decayed():
    run = trainer()
    matrices, others = run.optimizer.param_groups
    assert matrices["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in others["params"]} == {1}
    assert len(matrices["params"]) + len(others["params"]) == len(list(run.model.parameters()))


def test_accumulation_equals_the_large_batch():
    plain = trainer(spec=SPEC.but(dropout=0.0))
    parts = trainer(spec=SPEC.but(dropout=0.0), accumulate=4)
    for run in (plain, parts):
        run.model.double()
    sizes = []
    parts.model.register_forward_pre_hook(lambda model, args: sizes.append(len(args[0])))
    for a, b in zip(steps(plain, 5), steps(parts, 5), strict=True):
        assert a.nats == pytest.approx(b.nats, abs=1e-12)
        assert a.grad_norm == pytest.approx(b.grad_norm, abs=1e-12)
    for p, q in zip(plain.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10)
    assert sizes == [1] * 20  # four parts of one row, five times


def by_hand(run, inputs, targets):
    """Loss and gradients of one whole batch, by torch's own mean over what is not ignored."""
    run.model.zero_grad()
    F.cross_entropy(run.model(inputs).flatten(0, 1), targets.flatten().long()).backward()
    return [p.grad.clone() for p in run.model.parameters()]


@pytest.mark.parametrize("accumulate", [1, 2, 3, 4])
def test_parts_with_unequal_numbers_of_targets_equal_the_whole(accumulate):
    run = trainer(spec=SPEC.but(dropout=0.0), accumulate=accumulate)
    run.model.double()
    (inputs,), targets = run._draw_batch()[0]
    targets = targets.clone()
    targets[0, 3:] = targets[2, ::2] = objectives.IGNORED
    targets[3] = objectives.IGNORED  # with four parts, one that asks for nothing
    expected = by_hand(run, inputs, targets)
    run._backward(objectives.Batch((inputs,), targets))
    for p, grad in zip(run.model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=0, atol=1e-12)


def test_byte_156_is_a_target_like_any_other():
    assert objectives.count_targets(torch.tensor([[156, 0]], dtype=torch.uint8)) == 2
    assert objectives.count_targets(torch.tensor([[objectives.IGNORED, 156]])) == 1


def test_the_gradient_is_clipped_to_its_norm_and_the_norm_before_is_told(monkeypatch):
    run, seen = trainer(clip=0.01), []
    step = run.optimizer.step

    def spy():
        seen.append(math.sqrt(sum(p.grad.square().sum() for p in run.model.parameters())))
        step()

    monkeypatch.setattr(run.optimizer, "step", spy)
    record = next(run)
    assert record.grad_norm > 0.1
    assert seen == [pytest.approx(0.01, rel=1e-3)]


def test_training_learns_what_there_is_to_learn():
    run = trainer(steps=150, lr=2e-2)
    nats = losses(run)
    assert len(nats) == 150
    assert nats[0] > 5
    assert np.mean(nats[-10:]) < FLOOR + 0.4


# ---------------------------------------------------------------- reproducible


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    first, again, other = trainer(), trainer(), trainer(seed=1)
    assert losses(steps(first, 10)) == losses(steps(again, 10)) != losses(steps(other, 10))
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_nothing_that_others_draw_changes_a_run():
    alone, disturbed = trainer(), trainer()
    expected, got = losses(steps(alone, 10)), []
    for _ in range(10):
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002
        got.append(next(disturbed).nats)
    assert got == expected


def test_a_run_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    steps(trainer(validate_every=2), 12)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_on_while_training_and_depends_on_seed_and_step_alone(monkeypatch):
    run, masks = trainer(), []
    forward = Dropout.forward

    def spy(self, x):
        y = forward(self, x)
        masks.append(self.training and (y == 0).sum().item())
        return y

    monkeypatch.setattr(Dropout, "forward", spy)
    run.model.eval()  # as someone who looked at it might leave it
    next(run)
    trained = [mask for mask in masks if mask is not False]
    assert len(trained) == 6
    assert sum(trained) > 50
    assert losses(steps(trainer(), 3)) != losses(steps(trainer(spec=SPEC.but(dropout=0.2)), 3))


def test_the_batches_of_neighbouring_steps_and_seeds_differ():
    seeds = {mix_seeds(seed, step) for seed in range(50) for step in range(-50, 50)}
    assert len(seeds) == 5000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_looking_and_validating_disturb_nothing():
    plain, watched = trainer(), trainer(validate_every=1)
    expected, records = losses(steps(plain, 12)), []
    for _ in range(12):
        records.append(next(watched))
        watched.validate(50)
        assert finite(watched)
    assert losses(records) == expected
    assert same_weights(plain, watched)
    assert all(record.valid_nats > 0 for record in records)


def test_the_validation_loss_is_that_of_the_head_of_the_held_out_split():
    run = trainer(validate_every=3)
    records = steps(run, 3)
    assert [record.valid_nats is None for record in records] == [True, True, False]
    expected = evaluate.nats_per_token(run.model, CORPUS.valid[:200], 24)
    assert records[-1].valid_nats == expected == run.validate()
    assert run.validate(len(CORPUS.valid)) != expected


def test_runs_that_train_in_different_windows_can_be_validated_in_the_same():
    run = trainer()
    steps(run, 3)
    for window in (24, 10):
        expected = evaluate.nats_per_token(run.model, CORPUS.valid[:200], window)
        assert run.validate(window=window) == expected
    assert run.validate(window=10) != run.validate() == run.validate(window=run.window)
    assert len(run.loss_by_position(window=10)[0]) == 10


def test_the_head_of_the_held_out_split_is_also_read_as_a_stream():
    run = trainer()
    steps(run, 3)
    head = CORPUS.valid[:200]
    for options in ({}, {"longest": 24}, {"before": CORPUS.train[:500]}):
        nats, counts = run.stream_losses(**options)
        expected, targets = evaluate.stream_losses(run.model, head, **options)
        assert (nats.tolist(), counts.tolist()) == (expected.tolist(), targets.tolist())
    windows = evaluate.mean_loss(*run.stream_losses(longest=24))
    assert windows == pytest.approx(run.validate(), rel=1e-6)
    assert run.stream_losses(101)[1].sum() == 100


@BFLOAT16
def test_a_stream_is_read_in_the_precision_of_the_run():
    run, dtypes = trainer(precision="bfloat16"), set()
    run.model.head.register_forward_hook(lambda head, given, logits: dtypes.add(logits.dtype))
    run.stream_losses()
    assert dtypes == {torch.bfloat16}


# ---------------------------------------------------------------- the budget


def test_a_run_ends_after_its_steps():
    run = trainer(steps=7)
    assert [record.step for record in run] == list(range(1, 8))
    assert run.progress == 1.0
    with pytest.raises(StopIteration):
        next(run)


def test_a_run_of_seconds_ends_by_its_clock_which_drives_the_schedule():
    ticks = iter(range(0, 10_000, 5))  # each look at the clock is 5 seconds after the last
    run = trainer(seconds=50.0, steps=3, warmup=0.0, clock=lambda: next(ticks))
    records = list(run)
    assert len(records) == 10
    assert run.seconds == 50
    assert {record.step_seconds for record in records} == {5}
    assert records[0].lr == RECIPE.lr
    half = RECIPE.lr * (0.02 + 0.98 / 2)
    assert records[5].lr == pytest.approx(half)


# ---------------------------------------------------------------- commands


@BFLOAT16
def test_a_run_replayed_from_its_log_is_the_same_bit_for_bit():
    live, records = trainer(), []
    for n in range(25):
        if n == 4:
            live.submit("precision", "bfloat16")
        if n == 9:
            live.submit("lr", 1e-3)
            live.submit("batch", 2)
        if n == 15:
            live.submit("precision", "float32")
        records.append(next(live))
    assert [entry[:2] for entry in live.log] == [
        [4, "precision"],
        [9, "lr"],
        [9, "batch"],
        [15, "precision"],
    ]
    assert [r.precision for r in records[3:17]] == ["float32"] + ["bfloat16"] * 11 + ["float32"] * 2
    again = trainer()
    again.replay(live.log)
    replayed = steps(again, 25)
    assert losses(replayed) == losses(records)
    assert same_weights(live, again)
    assert again.log == live.log
    assert replayed[-1].bytes_seen == records[-1].bytes_seen


def test_a_learning_rate_is_the_new_peak_from_the_next_step_on():
    run = trainer()
    before = steps(run, 10)[-1]
    run.submit("lr", 0.1)
    after = next(run)
    assert after.lr / before.lr == pytest.approx(0.1 / RECIPE.lr, rel=0.05)
    assert run.log == [[10, "lr", 0.1]]


def test_commands_that_make_no_sense_are_refused_at_once():
    run = trainer()
    with pytest.raises(ValueError, match="unknown command 'speed'; choose from batch, device"):
        run.submit("speed", 3)
    for value in (0, -1.0, math.nan, math.inf, "fast", True, None, 10**400):
        with pytest.raises(ValueError, match="learning rate must be a number above 0, got"):
            run.submit("lr", value)
    for value in (0, 2.5, True):
        with pytest.raises(ValueError, match="batch must be a whole number above 0"):
            run.submit("batch", value)
    with pytest.raises(ValueError, match="named by a string, got 16"):
        run.submit("precision", 16)


def test_all_refusals_before_a_step_are_told_whatever_else_acts():
    run = trainer()
    run.submit("precision", "float16")
    run.submit("lr", 1e-3)
    run.submit("device", "cuda:99")
    next(run)
    assert "float16" in run.last_refusal
    assert "cuda:99" in run.last_refusal
    assert run.log == [[0, "lr", 1e-3]]
    run.submit("lr", 2e-3)
    next(run)
    assert run.last_refusal is None


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("device", "tpu"), "no device 'tpu' here"),
        (("precision", "float8"), "unknown precision 'float8'"),
        (("precision", "float16"), "cpu cannot train in float16"),
        (("batch", 1), "accumulate=2 micro-batches need a row each, but batch=1"),
    ],
)
def test_a_refused_command_is_told_and_changes_nothing(command, reason):
    plain, run = trainer(accumulate=2), trainer(accumulate=2)
    expected = losses(steps(plain, 4))
    got = losses(steps(run, 2))
    run.submit(*command)
    got += losses(steps(run, 2))
    assert got == expected
    assert reason in run.last_refusal
    assert run.log == []
    run.submit("lr", 1e-3)
    next(run)
    assert run.last_refusal is None


@BFLOAT16
@pytest.mark.parametrize("failure", ["parity", "gradient", "out of memory"])
def test_a_move_that_fails_leaves_the_run_where_it_was(monkeypatch, failure):
    plain, run = trainer(), trainer()
    expected = losses(steps(plain, 6))
    got = losses(steps(run, 3))
    if failure == "out of memory":
        calls = []

        def once(device, precision, *parts):
            place = move_to(device, precision, *parts)
            calls.append(precision)
            if len(calls) == 1:
                raise RuntimeError("out of memory")
            return place

        monkeypatch.setattr("qllk.training.trainer.move_to", once)
    else:
        trial = _trial_step

        def wrong(model, ids, device, precision):
            nats, finite = trial(model, ids, device, precision)
            broken = precision == "bfloat16"
            return nats + broken * (failure == "parity"), finite and not (
                broken and failure == "gradient"
            )

        monkeypatch.setattr("qllk.training.place._trial_step", wrong)
    run.submit("precision", "bfloat16")
    records = steps(run, 3)
    assert got + losses(records) == expected
    assert {r.precision for r in records} == {"float32"}
    told = {
        "out of memory": "out of memory",
        "parity": "allowed difference",
        "gradient": "trial step on cpu",
    }
    assert told[failure] in run.last_refusal
    assert run.log == []


def test_a_trial_step_changes_neither_model_nor_gradients():
    run = trainer()
    next(run)
    before = take_snapshot(run).tensors
    run.optimizer.zero_grad()
    ids = torch.from_numpy(CORPUS.train[None, :25].copy())
    nats, finite = _trial_step(run.model, objectives.next_token(ids), "cpu", "float32")
    assert finite
    assert nats > 0
    assert run.model.training
    assert all(p.grad is None for p in run.model.parameters())
    assert all(
        torch.equal(before[name], value) for name, value in take_snapshot(run).tensors.items()
    )


@BFLOAT16
def test_a_switch_of_precision_keeps_the_loss_continuous():
    plain, run = trainer(), trainer()
    expected = losses(steps(plain, 30))
    got = losses(steps(run, 10))
    run.submit("precision", "bfloat16")
    got += losses(steps(run, 10))
    run.submit("precision", "float32")
    got += losses(steps(run, 10))
    assert got[:10] == expected[:10]
    assert got[10:] != expected[10:]
    assert np.abs(np.array(got) - expected).max() < 0.05
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


# ---------------------------------------------------------------- diverging


def test_a_loss_that_is_no_number_is_named_and_the_last_good_state_kept(monkeypatch):
    monkeypatch.setattr("qllk.training.trainer._SNAPSHOT_EVERY", 10)
    plain, run = trainer(), trainer()
    expected = losses(steps(plain, 40))
    steps(run, 13)
    run.submit("lr", 1e38)
    with pytest.raises(Diverged, match=r"at step 1\d the loss is .*learning rate.*step 10.*lower"):
        steps(run, 27)
    assert run.step == 10
    assert run.log == []
    assert finite(run)
    assert losses(steps(run, 30)) == expected[10:]
    assert same_weights(plain, run)


def test_a_diverged_run_can_go_on_with_a_lower_rate(monkeypatch):
    monkeypatch.setattr("qllk.training.trainer._SNAPSHOT_EVERY", 10)
    run = trainer(lr=1e38)
    with pytest.raises(Diverged):
        steps(run, 40)
    with pytest.raises(Diverged):  # the same again, for nothing was changed
        steps(run, 40)
    run.submit("lr", RECIPE.lr)
    assert losses(steps(run, 40)) == losses(steps(trainer(), 40))
    assert run.log == [[0, "lr", RECIPE.lr]]


def test_weights_that_an_update_has_ruined_are_never_kept(monkeypatch):
    monkeypatch.setattr("qllk.training.trainer._SNAPSHOT_EVERY", 1)
    run = trainer()
    steps(run, 5)
    for p in run.model.parameters():
        p.data.fill_(math.nan)
    assert not finite(run)
    with pytest.raises(Diverged):
        next(run)
    assert finite(run)
    assert run.step == 4


@BFLOAT16
def test_a_diverged_run_goes_back_to_the_precision_that_its_log_tells():
    run = trainer()
    run.submit("precision", "bfloat16", at=3)
    run.submit("lr", 1e38, at=6)
    with pytest.raises(Diverged):
        steps(run, 40)
    assert (run.step, run.log, run.place.precision) == (0, [], "float32")
    assert losses(steps(run, 5)) == losses(steps(trainer(), 5))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_ctrl_c_in_the_middle_of_an_update_waits_for_its_end(monkeypatch, moment):
    plain, run = trainer(), trainer()
    expected = losses(steps(plain, 8))
    got = losses(steps(run, 3))
    update = run.optimizer.step

    def pressed():
        if moment == "before":
            signal.raise_signal(signal.SIGINT)
        update()
        if moment == "after":
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(run.optimizer, "step", pressed)
        with pytest.raises(KeyboardInterrupt):
            next(run)
    assert run.step == 4  # the step is done, only its record is lost
    got += [expected[3], *losses(steps(run, 4))]
    assert got == expected
    assert same_weights(plain, run)


def test_a_run_in_a_thread_is_the_same_run():
    got = []
    thread = threading.Thread(target=lambda: got.extend(losses(steps(trainer(), 5))))
    thread.start()
    thread.join()
    assert got == losses(steps(trainer(), 5))


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"seconds": 0},
        {"seconds": math.inf},
        {"batch": 2.0},
        {"window": -1},
        {"accumulate": 0},
        {"accumulate": 5},
        {"recompute": -1},
        {"recompute": 1.0},
        {"optimizer": 3},
        {"matmul": None},
        {"lr": 0},
        {"lr": math.nan},
        {"table_lr": 0},
        {"final_lr": -0.1},
        {"final_lr": 1.5},
        {"warmup": -1},
        {"warmup": 1.5},
        {"weight_decay": -1},
        {"weight_decay": math.nan},
        {"weight_decay": math.inf},
        {"clip": 0},
        {"precision": None},
        {"device": 0},
        {"compile": "yes"},
        {"seed": -1},
        {"seed": 2**63},
        {"validate_every": 0},
        {"validate_bytes": True},
    ],
    ids=str,
)
def test_a_recipe_that_makes_no_sense_names_its_field(wrong):
    (field,) = wrong
    with pytest.raises(ValueError, match=f"Recipe: {field}.*{wrong[field]}"):
        replace(RECIPE, **wrong)


def test_a_recipe_goes_through_plain_data_and_back():
    values = {"steps": 7, "lr": 0.1, "seconds": None}
    assert Recipe.from_dict(values) == Recipe(**values)
    with pytest.raises(ValueError, match="Recipe has no field 'speed'; it has steps"):
        Recipe.from_dict({"speed": 1})


def test_a_run_that_cannot_start_says_why():
    with pytest.raises(ValueError, match="'markov': the valid split has 400 ids"):
        trainer(window=400)
    with pytest.raises(ValueError, match="no device 'tpu' here"):
        trainer(device="tpu")
    with pytest.raises(ValueError, match="unknown precision 'float8'"):
        trainer(precision="float8")
    with pytest.raises(ValueError, match="unknown preset 'nonsense'; choose from"):
        trainer(spec="nonsense")
    with pytest.raises(ValueError, match="unknown optimizer 'sgd'; choose from adamw, adamw-bf"):
        trainer(optimizer="sgd")


def test_a_window_shorter_than_a_patch_simply_works():
    run = trainer(window=3)
    steps(run, 3)
    tensors, metadata = take_snapshot(run)
    again = trainer(window=3)
    restore_snapshot(again, Snapshot(tensors, metadata))
    assert losses(steps(run, 3)) == losses(steps(again, 3))


# ---------------------------------------------------------------- honest on noise


def test_on_noise_the_corrected_model_learns_nothing_and_the_published_one_cheats():
    """Fresh random bytes each step: below ln 256 = 5.545 nats there is nothing but a leak."""
    corpus = task("noise", 1 << 21)
    floor = corpus.floor
    recipe = Recipe(steps=300, batch=8, window=64, warmup=0.1)
    honest = Trainer(TINY["qllk-2"], corpus, recipe)
    assert len(losses(honest)) == 300
    torch.manual_seed(0)
    leaky = QLLK11(dim=64, n_layers=1)
    adam = torch.optim.AdamW(leaky.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)

    def fresh(model):
        ids = windows.sample_windows(corpus.valid, 64, 64, generator)
        return objectives.token_losses(model(ids[:, :-1]), ids[:, 1:]).mean()

    for step in range(300):
        ids = windows.sample_windows(corpus.train, 8, 64, generator)
        loss = objectives.token_losses(leaky(ids[:, :-1]), ids[:, 1:]).mean()
        adam.param_groups[0]["lr"] = 1e-2 * min(1.0, (300 - step) / 150)
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        assert abs(fresh(honest.model.eval()).item() - floor) < 0.05
        assert fresh(leaky).item() < 1.5


@pytest.mark.slow
def test_noise_teaches_qllk_3_nothing_and_takes_little_from_it():
    """A model of noise cannot beat ln 256, unless it leaks. What it loses to it is what it has
    learned by heart, or recalled in vain.
    """
    text = task("noise", 1 << 22)
    recipe = Recipe(**recipe_of("qllk-3-nano") | {"steps": 300})
    run = Trainer("qllk-3-nano", text, recipe)
    steps(run, 300)
    assert math.log(256) - 0.002 < run.validate(1 << 17) < math.log(256) + 0.05


# ---------------------------------------------------------------- other families, other ids

PERIODIC = task("periodic", 4000)  # whoever has seen sixteen bytes knows all others
OTHERS = {  # each family beside the decoders, tiny, its vocabulary as large as it must be
    "bert-nano": TINY["bert-nano"].but(vocab_size=257, dropout=0.1),
    "t5-nano": TINY["t5-nano"].but(vocab_size=300, dropout=0.1),
}
other_families = pytest.mark.parametrize("spec", OTHERS.values(), ids=OTHERS)


@pytest.mark.parametrize(
    ("name", "text", "recipe"),
    [
        ("bert-nano", CORPUS, replace(RECIPE, steps=500, batch=8, lr=3e-3)),
        ("t5-nano", PERIODIC, replace(RECIPE, steps=200, lr=1e-2)),
    ],
    ids=OTHERS,
)
def test_every_family_learns_more_than_how_often_each_byte_comes(name, text, recipe):
    spec = OTHERS[name].but(d_model=32, dropout=0.0)
    run = Trainer(spec, text, recipe)
    assert losses(run)[0] == pytest.approx(math.log(spec.vocab_size), abs=0.5)
    unigram = baselines.table_losses(text.train, text.valid)["unigram"]
    assert run.validate(len(text.valid)) < unigram - 0.08


@other_families
def test_a_run_of_any_family_is_resumed_and_replayed_bit_for_bit(spec, tmp_path):
    run = Trainer(spec, PERIODIC, RECIPE)
    run.submit("lr", 1e-3, at=3)
    steps(run, 6)
    saved = checkpoint.save(run, tmp_path / "saved")
    expected = losses(steps(run, 6))
    resumed = checkpoint.load(saved, PERIODIC)
    assert losses(steps(resumed, 6)) == expected
    assert same_weights(resumed, run)
    replayed = Trainer(spec, PERIODIC, RECIPE)
    replayed.replay(run.log)
    steps(replayed, 12)
    assert same_weights(replayed, run)


@other_families
def test_the_parts_of_a_batch_of_any_family_are_worth_what_they_ask(spec):
    run = Trainer(spec.but(dropout=0.0), PERIODIC, replace(RECIPE, accumulate=3))
    run.model.double()
    batch = run._draw_batch()[0]
    logits = run.model(*batch.inputs).flatten(0, 1)
    F.cross_entropy(logits, batch.targets.flatten()).backward()
    expected = [p.grad.clone() for p in run.model.parameters() if p.grad is not None]
    run._backward(batch)
    got = [p.grad for p in run.model.parameters() if p.grad is not None]
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@other_families
def test_validation_asks_the_same_each_time_about_all_held_out_bytes_and_text_alone(spec):
    run = Trainer(spec, PERIODIC, RECIPE)
    asked, ask = [], run.ask
    run.ask = lambda ids, generator: asked.append(ids) or ask(ids, generator)
    first = run.validate(len(PERIODIC.valid))
    assert sum(ids[:, :-1].numel() for ids in asked) == len(PERIODIC.valid) - 1
    next(run)
    fresh = Trainer(spec, PERIODIC, RECIPE)
    restore_snapshot(run, take_snapshot(fresh))
    assert run.validate(len(PERIODIC.valid)) == first
    with torch.no_grad():  # whatever it thinks of sentinels: text is what counts
        run.model.head.weight[257:] += 5.0
    run.ask = ask
    generator = torch.Generator().manual_seed(mix_seeds(0, 0))
    total = count = 0
    for ids in windows.iterate_windows(PERIODIC.valid, 16, 24):
        inputs, targets = ask(ids, generator)
        found = run.model.eval()(*inputs).flatten(0, 1).detach()
        text = (targets >= 0) & (targets < 256)
        nats = F.cross_entropy(found, targets.flatten().clamp(min=0), reduction="none")
        total, count = total + nats[text.flatten()].sum().item(), count + text.sum().item()
    assert run.validate(len(PERIODIC.valid)) == pytest.approx(total / count, rel=1e-6)


def test_the_loss_that_is_told_is_that_of_text_and_learned_from_is_all():
    run = Trainer(OTHERS["t5-nano"].but(dropout=0.0), PERIODIC, RECIPE)
    inputs, targets = run._draw_batch()[0]
    nats = F.cross_entropy(run.model(*inputs).flatten(0, 1), targets.flatten(), reduction="none")
    text = targets.flatten() < 256
    nats.mean().backward()
    expected = [p.grad.clone() for p in run.model.parameters()]
    told, _ = run._backward(objectives.Batch(inputs, targets))
    assert told == pytest.approx(nats[text].mean().item(), rel=1e-6)
    assert told != pytest.approx(nats.mean().item(), rel=1e-4)
    for p, grad in zip(run.model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=0, atol=1e-6)


@other_families
def test_a_run_of_any_family_moves_between_precisions(spec):
    devices.require("cpu", "bfloat16")
    run = Trainer(spec, PERIODIC, RECIPE)
    run.submit("precision", "bfloat16", at=3)
    records = steps(run, 6)
    assert run.last_refusal is None
    assert [record.precision for record in records] == ["float32"] * 3 + ["bfloat16"] * 3
    assert bool(records[-1].state_rms) == (spec.family != "encoder")  # that remembers nothing


@other_families
def test_windows_of_two_bytes_are_trained_on_judged_and_moved(spec):
    run = Trainer(spec, PERIODIC, replace(RECIPE, batch=1, window=2, steps=20))
    run.submit("precision", "bfloat16")
    assert all(map(math.isfinite, losses(run)))
    assert run.last_refusal is None
    assert finite(run)


def test_a_model_that_reads_no_whole_window_gets_it_in_several_rows():
    run = trainer(spec=TINY["gpt2-nano"].but(context=16), window=48)
    assert run.window == 16
    assert run._draw_batch()[0].targets.shape == (12, 16)
    assert next(run).bytes_seen == trainer(window=48).bytes_per_step == 4 * 48
    longer = trainer(spec=TINY["gpt2-nano"].but(context=64), window=48)
    assert longer.window == 48
    assert longer._draw_batch()[0].targets.shape == (4, 48)


def test_a_weight_larger_than_any_memory_is_refused_in_words():
    with pytest.raises(ValueError, match="the model is too large: Storage size calculation"):
        Trainer(PRESETS["qllk-2-nano"].but(d_model=10**9), task("copy", 999), Recipe(window=32))


def test_the_ids_of_all_micro_batches_must_fit_in_memory():
    rows = 99_999_999_999
    with pytest.raises(ValueError, match="a step on 99,999,999,999 rows of 32 ids takes about"):
        Trainer("qllk-2-nano", task("copy", 999), Recipe(window=32, batch=rows, accumulate=rows))


def test_a_model_larger_than_the_memory_is_refused_before_it_is_built(monkeypatch):
    monkeypatch.setattr(devices, "free_bytes", lambda device: 1 << 30)
    with pytest.raises(ValueError, match=r"take 63\.9 GiB, but cpu has 1\.0 GiB free; `python -m"):
        Trainer("swa-mla-xl", CORPUS, RECIPE)
    module = build(SPEC)
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    monkeypatch.setattr(devices, "free_bytes", lambda device: size)
    check_memory(module, "cpu")  # its weights are in memory already
    with pytest.raises(ValueError, match="the weights and gradients of this model take"):
        check_memory(sketch(SPEC), "cpu")


def test_weights_that_were_made_in_inference_mode_are_refused_in_words():
    with torch.inference_mode():
        module = build(SPEC)
    with pytest.raises(ValueError, match="cannot be trained; build the model outside of torch"):
        Trainer(module, CORPUS, RECIPE)


def test_a_vocabulary_too_small_for_the_text_is_refused():
    with pytest.raises(ValueError, match="this encoder needs a vocabulary of 257, but has 256"):
        Trainer(TINY["bert-nano"].but(vocab_size=256), CORPUS, RECIPE)
    with pytest.raises(
        ValueError, match=r"window of 1000 .* needs a vocabulary of 308, but has 300"
    ):
        Trainer(OTHERS["t5-nano"], task("markov", 40_000), replace(RECIPE, window=1000))
    with pytest.raises(ValueError, match=r"has 256 different ids.*or a corpus with fewer ids"):
        Trainer(PRESETS["randygpt-0.3"], CORPUS, RECIPE)


def test_the_vocabulary_of_a_preset_grows_to_fit_the_corpus():
    run = Trainer("randygpt-0.3", CORPUS, RECIPE)
    assert (run.name, run.spec.vocab_size) == ("randygpt-0.3", 256)
    assert Trainer("bert-nano", CORPUS, RECIPE).spec.vocab_size == 257


# ---------------------------------------------------------------- what can be trained


class Bigram(torch.nn.Module):
    """The least that a trainer accepts: ids to logits, no Spec and no state."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(256, 256)

    def forward(self, ids):
        return self.table(ids.long())


class Counted(Bigram):
    """A module of one's own that carries a state."""

    def run(self, ids, state=None):
        return self(ids), ModelState((state.t if state else 0) + ids.shape[1], ())


def test_any_module_that_maps_ids_to_logits_is_trained_in_place():
    torch.manual_seed(0)
    module = Bigram()
    run = Trainer(module, CORPUS, replace(RECIPE, lr=0.1))
    assert run.model is module
    assert (run.name, run.spec, run.window) == ("Bigram", None, 24)
    first, *_, last = steps(run, 30)
    assert last.nats < first.nats - 1
    assert (first.state_rms, first.rows_in_use, first.state_bytes) == ({}, {}, 0)
    run.move("cpu", "float32")
    assert next(Trainer(Counted(), CORPUS, RECIPE)).state_rms == {}


def test_a_module_of_ones_own_may_have_a_spec():
    model = build(SPEC, seed=RECIPE.seed)
    assert losses(steps(Trainer(model, CORPUS, RECIPE), 3)) == losses(steps(trainer(), 3))


def test_a_spec_may_be_given_as_the_path_of_its_json(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(SPEC.to_json())
    for what in (path, str(path)):
        run = Trainer(what, CORPUS, RECIPE)
        assert (run.spec, run.name) == (SPEC, "a spec of your own")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        Trainer(tmp_path / "nowhere.json", CORPUS, RECIPE)
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a Spec"):
        Trainer(path, CORPUS, RECIPE)


def test_a_loss_on_other_ids_is_told_per_byte(tmp_path):
    (tmp_path / "text.txt").write_bytes(bytes(CORPUS.train) + bytes(CORPUS.valid))
    corpus = corpora.corpus(f"bpe-300:{tmp_path / 'text.txt'}")
    run = Trainer(SPEC.but(dropout=0.0, vocab_size=300), corpus, RECIPE)
    length = corpus.bytes_per_id
    assert length > 1.5
    batch = run._draw_batch()[0]
    per_id = F.cross_entropy(run.model(*batch.inputs).flatten(0, 1), batch.targets.flatten())
    record = next(run)
    assert record.nats == pytest.approx(per_id.item() / length, rel=1e-6)
    assert record.bytes_seen == round(4 * 24 * length)
    whole = evaluate.nats_per_token(run.model, corpus.valid, 24)
    assert run.validate(len(corpus.valid)) == pytest.approx(whole / length, rel=1e-9)
    stream = evaluate.mean_loss(*evaluate.stream_losses(run.model, corpus.valid))
    told = evaluate.mean_loss(*run.stream_losses(len(corpus.valid)))
    assert told == pytest.approx(stream / length, rel=1e-9)


# ---------------------------------------------------------------- a CUDA device


@CUDA
def test_a_run_moves_to_a_cuda_device_and_back_without_a_break_in_its_loss():
    plain, run = trainer(spec=SPEC.but(dropout=0.0)), trainer(spec=SPEC.but(dropout=0.0))
    expected, records = losses(steps(plain, 30)), steps(run, 10)
    run.submit("device", "cuda")
    records += steps(run, 10)
    assert run.last_refusal is None
    assert run.log == [[10, "device", "cuda"]]
    moments = [v for state in run.optimizer.state.values() for v in state.values()]
    assert {str(v.device) for v in moments} == {"cuda:0"}
    run.submit("device", "cpu")
    records += steps(run, 10)
    assert [r.device for r in records] == ["cpu"] * 10 + ["cuda:0"] * 10 + ["cpu"] * 10
    assert np.abs(np.array(losses(records)) - expected).max() < 0.02


@CUDA
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_cuda_device_trains_in_half_precision(precision):
    devices.require("cuda", precision)
    plain, run = trainer(spec=SPEC.but(dropout=0.0)), trainer(spec=SPEC.but(dropout=0.0))
    expected = losses(steps(plain, 30))
    run.submit("device", "cuda")
    run.submit("precision", precision)
    records = steps(run, 30)
    assert {(r.device, r.precision) for r in records} == {("cuda:0", precision)}
    assert np.abs(np.array(losses(records)) - expected).max() < 0.1
    assert run._scaler.is_enabled() == (precision == "float16")


@CUDA
def test_the_data_are_the_same_on_every_device():
    run = trainer()
    expected = run._draw_batch()[0]
    run.move("cuda", "float32")
    assert torch.equal(run._draw_batch()[0].to("cpu").targets, expected.targets)


# ---------------------------------------------------------------- windows of one text in a row

RECALLING = TINY["qllk-3-nano"]
CARRY = {"spec": RECALLING, "carry": 3, "batch": 2, "steps": 12}  # from step 9 on


def texts(run, count):
    """The inputs of the next steps, each with the text before it."""
    found = []
    for _ in range(count):
        batch, before = run._draw_batch()
        found.append((batch.inputs[0], before))
        next(run)
    return found


def test_in_the_last_quarter_windows_continue_one_another():
    run = trainer(**CARRY)
    early, late = texts(run, 9), texts(run, 3)
    assert all(before is None for _, before in early)
    assert late[0][1].shape == (2, 0)
    for number in (1, 2):
        assert torch.equal(late[number][1], torch.cat([ids for ids, _ in late[:number]], dim=1))
    others = trainer(**CARRY | {"carry": 1})
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(early, texts(others, 9), strict=True))


def test_a_carried_window_is_read_with_the_recall_of_the_text_before_it():
    run = trainer(**CARRY)
    steps(run, 10)
    (ids,), before = run._draw_batch()[0].inputs, run._draw_batch()[1]
    logits = run._forward((ids,), before)
    expected, _ = run.model.run(ids, run.model.remember(before))
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, run.model(ids))


def test_a_carried_run_that_is_resumed_equals_one_that_is_not():
    whole, cut = trainer(**CARRY), trainer(**CARRY)
    steps(cut, 10)  # in the middle of a text
    again = trainer(**CARRY)
    restore_snapshot(again, take_snapshot(cut))
    assert losses(steps(whole, 12)[10:]) == losses(steps(again, 2))


def test_tables_learn_at_their_own_multiple_of_the_learning_rate():
    run = trainer(spec=RECALLING, table_lr=3.0)
    steps(run, 2)
    factors = [group["factor"] for group in run.optimizer.param_groups if "factor" in group]
    assert factors == [3.0]
    slow = trainer(spec=RECALLING, table_lr=0.001)
    steps(slow, 2)
    moved, hardly = (run.model.recall.table.weight for run in (run, slow))
    assert hardly.abs().max() < 0.01 * moved.abs().max()


def test_a_model_without_a_recall_reads_a_new_text_each_step():
    run = trainer(carry=3, steps=12, batch=2)
    assert all(before is None for _, before in texts(run, 12))


def test_a_module_that_cannot_remember_reads_a_new_text_each_step_although_it_has_a_recall():
    model = assembly.Model(8, (2, "word"), (3,), 64, 64)
    run = Trainer(model, CORPUS, replace(RECIPE, carry=3, steps=12))
    assert all(before is None for _, before in texts(run, 12))


def test_a_text_is_never_longer_than_the_corpus():
    run = trainer(**CARRY | {"carry": 10_000})
    assert (run._carry + 1) * run.window >= len(CORPUS.train) > run._carry * run.window
    steps(run, 12)


def test_carrying_excludes_micro_batches_and_compiling():
    for other in ({"accumulate": 2}, {"compile": True}):
        with pytest.raises(ValueError, match="carry=3 cannot be combined with micro-batches or"):
            trainer(**CARRY | other)
