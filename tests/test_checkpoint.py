"""A checkpoint is the whole run or an error; whatever a file holds, nothing else can happen."""

import hashlib
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import BFLOAT16, SPEC
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes

from qllk import files
from qllk.text import corpora
from qllk.text.corpora import corpus, task
from qllk.text.tokens import Bytes
from qllk.training import checkpoint
from qllk.training.checkpoint import digest, load, load_model, read_metadata, save
from qllk.training.recipe import Recipe
from qllk.training.snapshot import restore_snapshot, take_snapshot
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
        "sha256": digest(tensors, metadata),
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
        b'{"__metadata__":[1],"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b'{"__metadata__":{"format":3},"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        b'{"x":{"dtype":["F32"],"shape":[4],"data_offsets":[0,16]}}',
        b'{"x":{"dtype":"F32","shape":[4.0],"data_offsets":[0,16.0]}}',
        b'{"x":{"dtype":"F32","shape":{},"data_offsets":"ab"}}',
    ],
    ids=range(13),
)
@pytest.mark.parametrize("length", [None, 2**63, 2**64 - 1, 10**9])
def test_a_hostile_header_is_refused(tmp_path, header, length):
    path = tmp_path / "run"
    size = len(header) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ValueError, match=r"not a readable checkpoint|not a run of qllk"):
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


# ---------------------------------------------------------------- nothing is lost


def test_a_run_that_went_back_does_not_overwrite_its_newer_file(tmp_path):
    run = trained(8)
    before, path = take_snapshot(run), tmp_path / "run"
    steps(run, 3)
    content = save(run, path).read_bytes()
    restore_snapshot(run, before)  # as after a divergence
    for _ in range(3):
        with pytest.raises(FileExistsError, match=r"run' cannot be written: it has step 11 of the"):
            save(run, path)
        next(run)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
    next(run)
    assert load(save(run, path)).step == 12
    assert read_metadata(path)["step"] == 12


def test_the_file_of_another_run_or_of_no_run_is_replaced(tmp_path):
    path = save(trained(5), tmp_path / "run")
    for other in (trainer(lr=0.1), trainer(spec=SPEC.but(d_model=16)), trainer(seed=7)):
        next(other)
        assert same(load(save(other, path)), other)
        save(trained(5), tmp_path / "five")
        (tmp_path / "five").replace(path)
    path.write_bytes(b"no run")
    assert load(save(trainer(), path)).step == 0


def test_a_run_with_weights_or_moments_that_are_not_finite_is_not_saved(tmp_path):
    run = trained(3)
    state = run.optimizer.state[run.model.embed.weight]
    state["exp_avg_sq"][97] = math.nan
    with pytest.raises(Diverged, match=r"after step 3 tensor 'optimizer\.0\.exp_avg_sq' is not"):
        save(run, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_path_of_a_checkpoint_may_lie_in_the_home_folder_or_behind_a_link(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert save(trained(2), "~/run") == tmp_path / "run"
    (tmp_path / "link").symlink_to("run")
    assert load("~/link").step == 2
    assert load_model("~/run")[0].spec == SPEC
    save(trained(3), "~/link")
    assert (tmp_path / "link").is_symlink()
    assert read_metadata(tmp_path / "run")["step"] == 3


def test_ctrl_c_waits_until_a_file_is_written(tmp_path, monkeypatch):
    run, write = trained(2), checkpoint.write_atomically

    def interrupted(*args):
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        write(*args)

    monkeypatch.setattr(checkpoint, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(run, tmp_path / "run")
    assert load(tmp_path / "run").step == 2


def test_commands_that_wait_are_saved_whatever_kind_of_number_they_have(tmp_path):
    def steered():
        run = trained(2)
        run.submit("batch", np.int64(3))
        run.submit("lr", np.float32(0.25), at=np.int64(8))
        return run

    whole = steered()
    loaded = load(save(whole, tmp_path / "run"))
    assert list(loaded.pending) == [(None, "batch", 3), (8, "lr", 0.25)]
    assert steps(loaded, 9) == steps(whole, 9)
    assert same(loaded, whole)
    assert loaded.log == [[2, "batch", 3], [8, "lr", 0.25]]


# ---------------------------------------------------------------- what a resumed run hears


def test_a_resumed_run_hears_a_new_budget_rate_and_batch(good):
    loaded = load(good[0], changes={"steps": 14, "lr": np.float32(0.5), "batch": 3})
    assert loaded.log == [[12, "batch", 3], [12, "lr", 0.5]]
    records = list(loaded)
    assert [record.step for record in records] == [13, 14]
    assert loaded.lr == 0.5
    assert loaded.recipe == replace(RECIPE, steps=14)  # where it began; the log has the rest
    timed = load(good[0], changes={"seconds": 1e9})
    assert timed.recipe.seconds == 1e9
    assert load(good[0], changes={"seconds": 5, "steps": 3}).recipe.seconds == 5


def test_steps_that_are_asked_for_take_the_place_of_seconds(tmp_path):
    path = save(trainer(seconds=1e9), tmp_path / "run")
    assert load(path, changes={"steps": 7}).recipe == replace(RECIPE, steps=7)


@BFLOAT16
def test_a_resumed_run_hears_a_device_a_precision_and_how_to_compute(good):
    loaded = load(good[0], changes={"device": "cpu", "precision": "bfloat16", "recompute": 1})
    assert next(loaded).precision == "bfloat16"
    assert loaded.recipe.recompute == 1
    for changes in ({"device": "cuda:77"}, {"precision": "float16"}):
        with pytest.raises(ValueError, match=r"run.safetensors' cannot .*(cuda:77|CUDA)"):
            load(good[0], changes=changes)


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"window": 8}, {"optimizer": "lion"}, {"clip": 2.0}, {"colour": 1}],
    ids=str,
)
def test_what_would_make_it_another_run_is_refused_by_name(good, changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} cannot be changed when a run is"):
        load(good[0], changes=changes)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"lr": -1}, {"batch": "3"}, {"compile": 2}])
def test_a_change_that_makes_no_sense_names_its_field(good, changes):
    with pytest.raises(ValueError, match=f"cannot be resumed: Recipe: {next(iter(changes))} must"):
        load(good[0], changes=changes)


def test_an_explicit_change_takes_the_place_of_the_same_command_that_waits(tmp_path):
    run = trained(2)
    run.submit("lr", 0.25)
    loaded = load(save(run, tmp_path / "run"), changes={"lr": 0.125})
    next(loaded)
    assert (loaded.lr, loaded.log) == (0.125, [[2, "lr", 0.125]])


# ---------------------------------------------------------------- the text of a run


def text_file(path, size=3600):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(CORPUS.train.tobytes()[:size])
    return path


def test_the_tokenizer_is_that_of_the_checkpoint_wherever_its_file_has_gone(tmp_path, monkeypatch):
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.WordLevel({chr(97 + n): n for n in range(26)}, "a"))
    made.pre_tokenizer = library.pre_tokenizers.Split("", "isolated")
    text = text_file(tmp_path / "text" / "x.txt")
    made.save(str(tmp_path / "text" / "tok.json"))
    monkeypatch.chdir(text.parent)
    run = trainer(data=corpus("tok.json:x.txt"))
    expected = steps(run, 2) and save(run, tmp_path / "run")
    (tmp_path / "text" / "tok.json").unlink()
    monkeypatch.chdir(tmp_path)
    loaded = load(expected)
    assert same(loaded, run)
    assert steps(loaded, 3) == steps(run, 3)


def test_a_text_that_is_given_is_read_in_the_ids_of_the_checkpoint(tmp_path):
    text = text_file(tmp_path / "x.txt")
    run = trainer(spec=SPEC.but(vocab_size=280), data=corpus(f"bpe-280:{text}"))
    path = save(run, tmp_path / "run")
    moved = text.rename(tmp_path / "moved.txt")
    assert steps(load(path, corpus(moved)), 3) == steps(run, 3)
    other = corpus(text_file(tmp_path / "other.txt", 3000))
    loaded = load(path, other)
    assert loaded.corpus.tokenizer == run.corpus.tokenizer
    assert loaded.corpus.source == f"bpe-280:{tmp_path / 'other.txt'}"
    with pytest.raises(ValueError, match="has another tokenizer than the run; give its bytes"):
        load(path, corpus(f"characters:{moved}"))


def test_a_run_can_go_on_on_another_text_if_that_is_given(good, tmp_path):
    other = corpus(text_file(tmp_path / "other.txt", 3000))
    loaded = load(good[0], other)
    assert loaded.corpus is other
    assert loaded.last_refusal == (
        "the run was trained on 'task:markov:4000:0'; it continues on another text, 'other'"
    )
    assert next(loaded).step == 13
    assert load(save(loaded, tmp_path / "run")).corpus.source == str(tmp_path / "other.txt")


def test_the_library_of_another_python_is_named(tmp_path):
    run = trainer()
    metadata = take_snapshot(run).metadata
    metadata["corpus"] |= {"source": "stdlib", "bytes": 123_456, "python": "3.10.1"}
    path = crafted(tmp_path / "run", take_snapshot(run).tensors, metadata)
    with pytest.raises(
        ValueError,
        match=r"trained on 'stdlib' of Python 3\.10\.1: it had 123,456 bytes, but 'stdlib' has "
        r"[\d,]+ now; give the text to go on with: .*, or --corpus",
    ):
        load(path)
    assert steps(load(path, CORPUS), 2) == steps(run, 2)


NEVER_OPENED = {
    "a folder of the system": "/usr",
    "a folder": "/etc",
    "a file": "/etc/passwd",
    "a device": "/dev/zero",
    "a device without end": "/dev/urandom",
    "memory": "/proc/self/mem",
    "a home": "~/.ssh",
    "a stream": "fineweb-edu",
    "an address": "https://example.com/text.txt",
    "a large task": "task:noise:268435456:0",
    "a huge task": f"task:markov:{10**30}:0",
    "a huge vocabulary": "bpe-9999999999999999:/usr",
    "a tokenizer's file": "/etc/passwd.json:/etc/passwd",
    "nothing": "",
    "a missing file": "/nowhere/text.txt",
    "two tokenizers": "bpe-300:bpe-300:stdlib",
    **{f"the download {name}": name for name in corpora.corpus_names()[1:-1]},
}


@pytest.mark.parametrize("size", [None, 1_000_003], ids=["unknown", "known"])
@pytest.mark.parametrize("source", NEVER_OPENED.values(), ids=NEVER_OPENED)
def test_a_text_that_a_foreign_file_names_is_not_opened(tmp_path, monkeypatch, source, size):
    def opened(*args, **kwargs):
        raise AssertionError(f"opened {args}")

    monkeypatch.setenv("QLLK_CACHE", str(tmp_path / "cache"))
    for name in ("corpus", "_download", "_read_stream", "_from_file", "_from_folder", "make_task"):
        monkeypatch.setattr(corpora, name, opened)
    run = trainer()
    metadata = take_snapshot(run).metadata
    metadata["corpus"] |= {"source": source, "bytes": size}
    path = crafted(tmp_path / "run", take_snapshot(run).tensors, metadata)
    with pytest.raises((ValueError, FileNotFoundError), match=r"run' cannot be .*--corpus"):
        load(path)
    assert not list(tmp_path.glob("cache/*"))


def test_a_download_that_is_already_here_is_found_again_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_CACHE", str(tmp_path))
    text = text_file(tmp_path / "abc.txt")
    row = {"file": "abc.txt", "url": "http://localhost:9/abc.txt"}
    row["sha256"] = hashlib.sha256(text.read_bytes()).hexdigest()
    (tmp_path / "manifest").write_text(json.dumps({"abc": row}))
    monkeypatch.setattr(corpora, "_MANIFEST", tmp_path / "manifest")
    path = save(trainer(data=corpus("abc")), tmp_path / "run")
    assert steps(load(path), 2)
    for copy in tmp_path.glob("abc*"):
        copy.unlink()
    with pytest.raises(FileNotFoundError, match=r"no text 'abc' on this machine"):
        load(path)


# ---------------------------------------------------------------- lies under a right checksum

NO_NUMBER = {"nan": math.nan, "infinite": math.inf, "minus infinite": -math.inf}


@pytest.mark.parametrize("value", NO_NUMBER.values(), ids=NO_NUMBER)
@pytest.mark.parametrize("name", ["model.head.weight", "optimizer.0.exp_avg", "optimizer.1.step"])
@pytest.mark.parametrize("loading", [load, load_model])
def test_numbers_that_no_run_has_are_refused(good, tmp_path, loading, name, value):
    tensors, metadata = take_snapshot(good[2])
    tensors[name].view(-1)[-1] = value
    path = crafted(tmp_path / "run", tensors, metadata)
    with pytest.raises(ValueError, match=rf"it is damaged: tensor '{name}' is not finite"):
        loading(path)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("optimizer.0.exp_avg_sq", -1.0, "must lie in 0 … inf"),
        ("optimizer.0.step", -1.0, "must lie in 0 … 12"),
        ("optimizer.0.step", 13.0, "must lie in 0 … 12"),
    ],
)
def test_moments_that_no_run_has_are_refused(good, tmp_path, name, value, reason):
    tensors, metadata = take_snapshot(good[2])
    tensors[name].view(-1)[0] = value
    with pytest.raises(ValueError, match=f"tensor '{name}' {reason}"):
        load(crafted(tmp_path / "run", tensors, metadata))


def test_a_trained_run_without_any_moments_is_refused(good, tmp_path):
    tensors, metadata = take_snapshot(good[2])
    weights = {name: value for name, value in tensors.items() if name.startswith("model.")}
    with pytest.raises(ValueError, match="the moments of the optimizer are missing"):
        load(crafted(tmp_path / "run", weights, metadata))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8])
@pytest.mark.parametrize("loading", [load, load_model])
def test_weights_of_another_type_are_refused(good, tmp_path, loading, dtype):
    tensors, metadata = take_snapshot(good[2])
    tensors["model.head.weight"] = tensors["model.head.weight"].to(dtype)
    path = crafted(tmp_path / "run", tensors, metadata)
    with pytest.raises(ValueError, match=rf"'model.head.weight' is \(256, 8\) {dtype}, expected"):
        loading(path)


@pytest.mark.parametrize("loading", [load, load_model])
def test_names_that_the_model_does_not_have_are_refused(good, tmp_path, loading):
    tensors, metadata = take_snapshot(good[2])
    path = crafted(tmp_path / "run", tensors | {"other": torch.zeros(2)}, metadata)
    with pytest.raises(ValueError, match=r"'other' is unknown \(1 differ in all\)"):
        loading(path)


LIES = {
    "batch": 2_000_000_000,
    "state_rms": {"byte 1 conv": "large"},
    "rows_in_use": {"recall 4": None},
    "scaler": {"scale": -1.0},
    "log": [[None, "lr", 1.0]],
    "recipe": RECIPE.__dict__ | {"window": 10**400},
    "corpus": {"source": "", "fingerprint": "", "tokenizer": Bytes().to_json(), "bytes": ""},
    "pending": [[None, "lr", math.inf]],
    "step": -1,
    "bytes_seen": 0.5,
    "seconds": math.nan,
    "lr": 10**400,
    "name": "a\0b",
    "device": 3,
}


@pytest.mark.parametrize("fact", LIES)
def test_a_fact_of_the_wrong_kind_is_refused(good, tmp_path, fact):
    tensors, metadata = take_snapshot(good[2])
    path = crafted(tmp_path / "run", tensors, metadata | {fact: LIES[fact]})
    with pytest.raises(ValueError, match=r"run' cannot be resumed: ") as refused:
        load(path)
    assert re.search("must be|expected a text|must have|takes about|named by", str(refused.value))


def test_a_module_may_have_buffers_of_any_value(tmp_path):
    def masked():
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Embedding(256, 256))
        module.register_buffer("mask", torch.full((3, 3), -math.inf))
        return module

    run = Trainer(masked(), CORPUS, RECIPE)
    next(run)
    assert load(save(run, tmp_path / "run"), model=masked()).step == 1


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
