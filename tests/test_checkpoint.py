"""A checkpoint is the whole run or an error; whatever a file holds, nothing else can happen."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from helpers import BFLOAT16, SPEC
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes

from qllk import files
from qllk.text.corpora import corpus, task
from qllk.text.tokens import Bytes
from qllk.training import checkpoint
from qllk.training.checkpoint import _digest, load, load_model, save
from qllk.training.recipe import Recipe
from qllk.training.snapshot import take_snapshot
from qllk.training.trainer import Diverged, Trainer

RECIPE = Recipe(steps=60, batch=2, window=24, warmup=0.1, validate_every=7, validate_bytes=200)
CORPUS = task("markov", 4000)


def trainer(spec=SPEC, data=CORPUS, **changes):
    return Trainer(spec, data, replace(RECIPE, **changes))


def trained(count=12):
    run = trainer()
    for _ in range(count):
        next(run)
    return run


def steps(run, count):
    """Records, less the times, which no resuming can repeat."""
    return [next(run)._replace(step_seconds=0, bytes_per_second=0) for _ in range(count)]


def same(a, b):
    """Bit for bit: weights, moments and all metadata, less the time they took."""
    mine, other = take_snapshot(a).tensors, take_snapshot(b).tensors
    metadata = [take_snapshot(run).metadata | {"seconds": 0} for run in (a, b)]
    return (
        mine.keys() == other.keys()
        and metadata[0] == metadata[1]
        and all(torch.equal(mine[name], other[name]) for name in mine)
    )


def crafted(path, tensors, metadata):
    """A file whose checksum is right, whatever it says."""
    metadata = metadata if isinstance(metadata, str) else json.dumps(metadata)
    header = {
        "format": str(checkpoint._FORMAT),
        "metadata": metadata,
        "sha256": _digest(tensors, metadata),
    }
    path.write_bytes(to_bytes(tensors, header))
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint, its bytes, and the run that it is."""
    run = trained()
    path = save(run, tmp_path_factory.mktemp("good") / "run.safetensors")
    return path, path.read_bytes(), run


# ---------------------------------------------------------------- resuming


def test_a_loaded_run_is_the_saved_one(good):
    path, _, run = good
    loaded = load(path)
    assert same(run, loaded)
    assert loaded.seconds == run.seconds
    assert loaded.spec == SPEC
    assert loaded.recipe == RECIPE
    assert loaded.step == 12


@BFLOAT16
def test_resuming_equals_never_having_stopped(tmp_path):
    whole, first = trainer(), trainer()
    for run in (whole, first):
        run.submit("precision", "bfloat16", at=5)
        run.submit("batch", 4, at=8)
        run.submit("precision", "float32", at=20)
    expected = steps(whole, 30)
    assert steps(first, 13) == expected[:13]
    loaded = load(save(first, tmp_path / "run"))
    assert (loaded.place.precision, loaded.batch) == ("bfloat16", 4)
    assert list(loaded.pending) == [(20, "precision", "float32")]  # what waits belongs to the run
    assert steps(loaded, 17) == expected[13:]
    assert same(whole, loaded)


def test_saving_disturbs_nothing(tmp_path):
    plain, saved = trainer(), trainer()
    expected = steps(plain, 12)
    got = []
    for _ in range(12):
        got += steps(saved, 1)
        save(saved, tmp_path / "run")
    assert got == expected
    assert same(plain, saved)


def test_a_run_that_was_not_yet_trained_can_be_resumed(tmp_path):
    assert steps(load(save(trainer(), tmp_path / "run")), 5) == steps(trainer(), 5)


def test_a_killed_process_loses_only_what_came_after_its_last_checkpoint(tmp_path):
    path = tmp_path / "run"
    script = f"""
        import time
        from qllk.training import checkpoint
        import test_checkpoint as t
        run = t.trainer()
        for record in run:
            if record.step % 5 == 0:
                checkpoint.save(run, {str(path)!r})
            print(record.step, flush=True)
            time.sleep(0.03)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    for line in child.stdout:
        if int(line) >= 17:
            child.send_signal(signal.SIGKILL)
            break
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    whole, resumed = trainer(), load(path)
    done = resumed.step
    assert done in range(15, 60, 5)
    assert steps(resumed, 60 - done) == steps(whole, 60)[done:]
    assert same(whole, resumed)


def test_the_model_alone_can_be_loaded(good):
    path, _, run = good
    model, tokenizer = load_model(path)
    assert tokenizer == Bytes()
    assert torch.equal(model.head.weight, run.model.head.weight)
    assert model.spec == SPEC


def test_a_corpus_is_found_again_by_its_path(tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(CORPUS.train.tobytes())
    run = trainer(data=corpus(text))
    path = save(run, tmp_path / "run")
    assert same(load(path), run)
    text.rename(tmp_path / "moved.txt")
    with pytest.raises(FileNotFoundError, match=r"run' cannot be .* no text '.*text\.txt' on this"):
        load(path)
    assert steps(load(path, corpus(tmp_path / "moved.txt")), 3) == steps(run, 3)
    text.write_bytes(b"changed" * 1000)
    with pytest.raises(ValueError, match=r"had 3,600 bytes, but '.*text\.txt' has 7,000 now; give"):
        load(path)
    text.write_bytes(bytes(3600))
    with pytest.raises(ValueError, match="that is a different text than 'text' is now"):
        load(path)


def test_a_checkpoint_of_a_device_that_is_not_here_goes_on_on_the_cpu(good, tmp_path):
    _, _, run = good
    metadata = take_snapshot(run).metadata | {"device": "cuda:77", "precision": "float16"}
    metadata["recipe"] |= {"device": "cuda:77", "precision": "float16"}
    metadata["scaler"] = {"scale": 65536.0, "growth_factor": 2.0}
    loaded = load(crafted(tmp_path / "run", take_snapshot(run).tensors, metadata))
    assert (loaded.place.device, loaded.place.precision) == ("cpu", "float32")
    assert "no device 'cuda:77'" in loaded.last_refusal
    assert "on the CPU in float32" in loaded.last_refusal
    assert loaded.log == [[12, "device", "cpu"], [12, "precision", "float32"]]
    assert steps(loaded, 3)[0].nats == steps(load(good[0]), 1)[0].nats


# ---------------------------------------------------------------- writing


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    run = trained(3)
    path = save(run, tmp_path / "run")
    before = path.read_bytes()
    next(run)
    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, broken, full)
            with pytest.raises(OSError, match="disk full"):
                save(run, path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
    assert load(save(run, path)).step == 4


def full(*args):
    raise OSError("disk full")


def test_a_ruined_run_is_not_written_over_a_good_one(tmp_path):
    run = trained(3)
    path = save(run, tmp_path / "run")
    before = path.read_bytes()
    run.model.head.weight.data.fill_(math.inf)
    with pytest.raises(Diverged, match=r"after step 3 .*nothing was written"):
        save(run, path)
    assert path.read_bytes() == before


def test_folders_on_the_way_are_made(tmp_path):
    assert load(save(trained(1), tmp_path / "a" / "b" / "run")).step == 1


# ---------------------------------------------------------------- files that are not this run


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "gone", tmp_path):
        with pytest.raises(FileNotFoundError, match="no checkpoint at"):
            load(path)


@pytest.mark.parametrize(
    "other", [SPEC.but(d_model=16), SPEC.but(patch=None)], ids=["wider", "no patches"]
)
def test_the_checkpoint_of_another_model_is_refused_and_changes_nothing(good, other):
    other = trainer(spec=other)
    before = take_snapshot(other).tensors
    with pytest.raises(ValueError, match=r"run of a different model \(a spec of your own\)"):
        load(good[0], model=other.model)
    assert all(torch.equal(before[n], value) for n, value in take_snapshot(other).tensors.items())


def test_the_tensors_of_another_model_are_refused(good, tmp_path):
    _, _, run = good
    wider = take_snapshot(trainer(spec=SPEC.but(d_model=16))).tensors
    for tensors in (wider, {}, take_snapshot(run).tensors | {"model.extra": torch.zeros(1)}):
        with pytest.raises(ValueError, match="not those of the model and the optimizer that"):
            load(crafted(tmp_path / "run", tensors, take_snapshot(run).metadata))
        with pytest.raises(ValueError, match="not those of the model and the optimizer that"):
            load_model(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("optimizer.0.exp_avg"), r"'optimizer.0.exp_avg' is missing"),
        (lambda t: t.update({"optimizer.99.step": torch.zeros(())}), "is unknown"),
        (lambda t: t.update({"optimizer.0.step": torch.zeros(2)}), r"is \(2,\) .*expected \(\)"),
        (lambda t: t.update({"optimizer.0.step": torch.zeros((), dtype=torch.int64)}), "int64"),
    ],
    ids=["missing", "unknown", "shape", "dtype"],
)
def test_damaged_moments_are_named(good, tmp_path, change, reason):
    _, _, run = good
    tensors = take_snapshot(run).tensors
    change(tensors)
    with pytest.raises(ValueError, match=reason):
        load(crafted(tmp_path / "run", tensors, take_snapshot(run).metadata))


LATER = {"rows_in_use": {}, "state_bytes": 0}  # facts that older checkpoints lack


@pytest.mark.parametrize("key", LATER)
def test_a_checkpoint_from_before_a_fact_was_known_loads_without_it(good, tmp_path, key):
    _, _, run = good
    metadata = take_snapshot(run).metadata
    del metadata[key]
    loaded = load(crafted(tmp_path / "run", take_snapshot(run).tensors, metadata))
    assert getattr(loaded, key) == LATER[key]
    metadata[key] = "many"
    with pytest.raises(
        ValueError, match=r"cannot be resumed: its metadata is damaged: .*(state_bytes must|items)"
    ):
        load(crafted(tmp_path / "run", take_snapshot(run).tensors, metadata))


@pytest.mark.parametrize("key", sorted(take_snapshot(trainer()).metadata.keys() - LATER.keys()))
def test_a_missing_fact_is_an_error(good, tmp_path, key):
    _, _, run = good
    metadata = take_snapshot(run).metadata
    del metadata[key]
    with pytest.raises(ValueError, match=key):
        load(crafted(tmp_path / "run", take_snapshot(run).tensors, metadata))


@pytest.mark.parametrize(
    "metadata", ["", "no JSON", "[]", "3", '{"spec": {}}', "[" * 100_000], ids=range(6)
)
def test_facts_that_are_none_are_an_error(good, tmp_path, metadata):
    with pytest.raises(ValueError, match="is damaged"):
        load(crafted(tmp_path / "run", take_snapshot(good[2]).tensors, metadata))


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_nothing_in_a_file_is_ever_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load(path)
    torch.save({"model": Bomb()}, path)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load(path)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "exploded").exists()  # it would have shown


def test_tensors_without_a_run_are_told_from_a_checkpoint(tmp_path):
    path = tmp_path / "weights.safetensors"
    ours = {"format": str(checkpoint._FORMAT)}
    for header in (None, {"format": "pt"}, ours, {"format": "99", "metadata": "{}"}):
        path.write_bytes(to_bytes({"x": torch.zeros(3)}, header))
        with pytest.raises(ValueError, match="contains tensors, but not a run of qllk"):
            load(path)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{}",
        b"[]",
        b"{" * 5000,
        b'{"__metadata__":{"format":"1"}}',
        b'{"x":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,399999999996]}}',
        b'{"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}',
        b'{"x":{"dtype":"PICKLE","shape":[1],"data_offsets":[0,4]}}',
    ],
    ids=range(8),
)
@pytest.mark.parametrize("length", [None, 2**63, 2**64 - 1, 10**9])
def test_a_hostile_header_is_refused(tmp_path, header, length):
    path = tmp_path / "run"
    size = len(header) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ValueError, match=r"not a readable checkpoint|no run of qllk"):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"d_model": 1 << 40},
        {"layers": 1 << 40},
        {"vocab_size": 1 << 40},
        {"patch": {"size": 1 << 30, "d_model": 8, "layers": 1, "mixers": [["cumsum", {}]]}},
        {"mixers": [["conv", {"width": 1 << 40}]]},
        {"mixers": [["pickle", {}]]},
    ],
    ids=str,
)
def test_a_spec_that_asks_for_too_much_is_refused_before_it_is_built(good, tmp_path, change):
    _, _, run = good
    spec = json.dumps(json.loads(take_snapshot(run).metadata["spec"]) | change)
    path = crafted(
        tmp_path / "run", take_snapshot(run).tensors, take_snapshot(run).metadata | {"spec": spec}
    )
    with pytest.raises(ValueError, match="run'"):
        load(path)


# ---------------------------------------------------------------- any file at all

FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def loaded_or_why(path, data=None):
    """The run, or what the error says; any other error than a ValueError fails the test."""
    try:
        return load(path, data)
    except ValueError as error:
        return str(error)


def says_why(message, path):
    return str(path) in message and len(message) > len(str(path)) + 20


def refused_or_the_same(good, tmp_path, content):
    """Loads as the run that was saved, or says no in a sentence; and the good file stays."""
    path, original, run = good
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content)
    answer = loaded_or_why(damaged)
    assert says_why(answer, damaged) if isinstance(answer, str) else same(answer, run)
    assert path.read_bytes() == original


@FUZZ
@given(keep=st.floats(0, 1), extra=st.binary(max_size=20))
def test_fuzz_a_file_cut_off_or_longer(good, tmp_path, keep, extra):
    original = good[1]
    refused_or_the_same(good, tmp_path, original[: round(keep * len(original))] + extra)


@FUZZ
@given(flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_fuzz_bytes_flipped_anywhere(good, tmp_path, flips):
    content = bytearray(good[1])
    for place, value in flips:
        content[min(int(place * len(content)), len(content) - 1)] = value
    refused_or_the_same(good, tmp_path, bytes(content))


@FUZZ
@given(flips=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=4))
def test_fuzz_bytes_flipped_in_the_header(good, tmp_path, flips):
    content = bytearray(good[1])
    for place, value in flips:
        content[place] = value
    refused_or_the_same(good, tmp_path, bytes(content))


@FUZZ
@given(content=st.binary(max_size=200), length=st.integers(0, 2**64 - 1) | st.none())
def test_fuzz_any_bytes(good, tmp_path, content, length):
    start = b"" if length is None else length.to_bytes(8, "little")
    refused_or_the_same(good, tmp_path, start + content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


@FUZZ
@given(data=st.data(), value=JSON)
def test_fuzz_facts_that_say_anything_under_a_right_checksum(good, tmp_path, data, value):
    """The checksum is no secret: each fact alone may be a lie."""
    _, _, run = good
    metadata = take_snapshot(run).metadata
    spec = json.loads(metadata["spec"])
    where = data.draw(st.sampled_from([metadata, metadata["recipe"], metadata["corpus"], spec]))
    where[data.draw(st.sampled_from(sorted(where)))] = value
    if where is spec:
        metadata["spec"] = json.dumps(spec)
    path = crafted(tmp_path / "crafted", take_snapshot(run).tensors, metadata)
    answer = loaded_or_why(path, CORPUS)
    assert isinstance(answer, Trainer) or says_why(answer, path)


# ---------------------------------------------------------------- modules, older formats


def test_a_module_without_a_spec_is_resumed_into_a_module_like_it(tmp_path):
    def bigram():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Embedding(256, 8), torch.nn.Linear(8, 256))

    whole, first = (Trainer(bigram(), CORPUS, RECIPE) for _ in range(2))
    expected = steps(whole, 9)
    steps(first, 5)
    path = save(first, tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"module without a Spec, Sequential; build the module and"
    ):
        load(path)
    with pytest.raises(ValueError, match="module without a Spec"):
        load_model(path)
    with pytest.raises(ValueError, match="it is the run of a different model"):
        load(path, model=trainer().model)
    assert steps(load(path, model=bigram()), 4) == expected[5:]
    with pytest.raises(ValueError, match=r"'model\.1\.bias' is unknown \(4 differ in all\)"):
        load(path, model=torch.nn.Sequential(torch.nn.Embedding(256, 8), Squared()))


class Squared(torch.nn.Module):
    """Maps (…,8) to (…,256) with weights of another name."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Linear(8, 256)

    def forward(self, x):
        return self.weights(x).square()


def test_a_checkpoint_of_an_older_format_says_what_to_do(tmp_path):
    path = tmp_path / "old"
    header = {"format": "2", "facts": "{}", "sha256": "0"}
    path.write_bytes(to_bytes({"model.a": torch.zeros(1)}, header))
    with pytest.raises(ValueError, match=r"older qllk \(format 2; this version reads format 3\)"):
        load(path)


def test_waiting_commands_of_a_file_are_checked(tmp_path):
    run = trained(1)
    for pending in ([[5, "lr", -1.0]], [[5, "colour", 1]], [["soon", "lr", 1.0]], [3]):
        metadata = take_snapshot(run).metadata | {"pending": pending}
        with pytest.raises(ValueError, match="cannot be resumed"):
            load(crafted(tmp_path / "run", take_snapshot(run).tensors, metadata))
