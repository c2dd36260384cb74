"""Checkpoints under kills, full disks, readers beside writers, and files made to do harm."""

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import suppress

import pytest
import torch
from test_checkpoint import crafted, same, steps, trained, trainer

from qllk.training import checkpoint
from qllk.training.checkpoint import load, load_model, read, save
from qllk.training.snapshot import take_snapshot

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]  # in seconds, on a busy machine
ENV = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def child(script, *arguments, **options):
    """A Python process that runs a script, and says "ready" when it begins with what matters."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True, **options)


# ---------------------------------------------------------------- kills

# One process imports torch and forks those that are killed. Each resumes the run and saves it after
# every step. Half of them are killed after a save or in the next step, half while they write.
KILLER = """
    import os, random, signal, sys, time
    import test_checkpoint as t
    from qllk import files

    path, draws = sys.argv[1], random.Random(0)
    for kill in range(int(sys.argv[2])):
        reads, writes = os.pipe()
        during = kill % 2
        if (pid := os.fork()) == 0:
            fsync = os.fsync

            def slow(handle):
                os.write(writes, b".")
                time.sleep(0.01)
                fsync(handle)

            files.os.fsync = slow if during else fsync
            for record in (run := t.load(path) if os.path.exists(path) else t.trainer(steps=9999)):
                t.save(run, path)
                during or os.write(writes, b".")
        for _ in range(draws.randrange(2, 5)):
            os.read(reads, 1)
        time.sleep(draws.random() * 0.008)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reads), os.close(writes)
        others = len(os.listdir(os.path.dirname(path))) - 1
        print(t.read_metadata(path)["step"], others, flush=True)
"""


def test_thirty_kills_half_of_them_during_a_save_change_no_bit_and_leave_no_file(tmp_path):
    path = tmp_path / "run"
    with child(KILLER, path, 30) as process:
        told = [tuple(map(int, line.split())) for line in process.stdout]
    assert process.returncode == 0
    done, others = zip(*told, strict=True)
    assert len(done) == 30
    assert list(done) == sorted(done)
    assert sum(others) >= 15, "too few of the kills were during a save"
    assert max(others) == 1  # that of the last kill; those before it are removed
    resumed, whole = load(path), trainer(steps=9999)
    steps(whole, resumed.step)
    assert same(resumed, whole)
    assert steps(resumed, 3) == steps(whole, 3)
    save(resumed, path)
    assert os.listdir(tmp_path) == ["run"]


# ---------------------------------------------------------------- full disks

FULL = """
    import resource, signal, sys
    import test_checkpoint as t

    path, draws = sys.argv[1], map(int, sys.argv[2:])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    run = t.load(path)
    size = len(open(path, "rb").read())
    for place in draws:
        next(run)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * place // 100, size * 2))
        try:
            t.save(run, path)
        except OSError as error:
            print(error, flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size * 2, size * 2))
    t.save(run, path)
"""


def test_ten_full_disks_are_told_and_the_last_good_file_stays(tmp_path):
    path = save(trained(3), tmp_path / "run")
    with child(FULL, path, *range(0, 100, 10)) as process:
        for _ in range(10):
            line = process.stdout.readline()
            assert line == f"{str(path)!r} cannot be written: File too large\n"
            assert os.listdir(tmp_path) == ["run"]
    assert process.returncode == 0
    assert load(path).step == 13


# ---------------------------------------------------------------- readers and writers

WRITER = """
    import os, sys
    import test_checkpoint as t

    run = t.load(sys.argv[1])
    print("ready", flush=True)
    while os.path.exists(sys.argv[2]):
        try:
            next(run)
            t.save(run, sys.argv[1])
        except FileExistsError as error:
            print(error, flush=True)
"""


def test_five_thousand_reads_beside_two_writers_refuse_nothing_and_no_step_is_lost(tmp_path):
    path, on = save(trainer(steps=1_000_000), tmp_path / "run"), tmp_path / "on"
    on.write_bytes(b"")
    writers = [child(WRITER, path, on) for _ in range(2)]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 2
    last = 0
    for _ in range(5000):
        step = read(path).metadata["step"]
        assert step >= last
        last = step
    on.unlink()
    told = [writer.communicate()[0].splitlines() for writer in writers]
    assert all(writer.returncode == 0 for writer in writers)
    assert all("of the same run, which is later than" in line for lines in told for line in lines)
    assert last > 100, "too little was written for this to be a trial"
    resumed, whole = load(path), trainer(steps=1_000_000)
    steps(whole, resumed.step)
    assert same(resumed, whole)
    save(resumed, path)
    assert os.listdir(tmp_path) == ["run"]


COPIER = """
    import os, shutil, sys

    print("ready", flush=True)
    while os.path.exists(sys.argv[3]):
        shutil.copyfile(sys.argv[1], sys.argv[2])
"""


def test_a_file_that_is_copied_over_while_it_is_read_is_whole_or_refused(tmp_path):
    source, on = save(trained(3), tmp_path / "source"), tmp_path / "on"
    path = tmp_path / "run"
    path.write_bytes(source.read_bytes())
    on.write_bytes(b"")
    with child(COPIER, source, path, on) as copier:
        assert copier.stdout.readline() == "ready\n"
        for _ in range(500):
            with suppress(ValueError):
                assert read(path).metadata["step"] == 3
        on.unlink()
    assert read(path).metadata["step"] == 3


# ---------------------------------------------------------------- Ctrl-C twice

LARGE = """
    import signal, sys
    import test_checkpoint as t
    from qllk.spec import Spec

    signal.signal(signal.SIGINT, signal.default_int_handler)
    spec = Spec(d_model=1024, layers=4, mixers=(("conv", {"width": 3}),))
    run = t.load(sys.argv[1]) if len(sys.argv) > 2 else t.trainer(spec=spec, steps=9999)
    print("ready", flush=True)
    try:
        for record in run:
            print("step", flush=True)
    finally:
        print("saving", run.step, flush=True)
        t.save(run, sys.argv[1])  # after which the second Ctrl-C acts
"""


@pytest.mark.timeout(3600)
@pytest.mark.skipif("QLLK_TEST_LARGE" not in os.environ, reason="needs QLLK_TEST_LARGE and 4 GB")
def test_ctrl_c_twice_within_half_a_second_loses_nothing_of_a_large_run(tmp_path):
    path, draws, resumed = tmp_path / "run", random.Random(0), []
    for pressing in range(10):
        with child(LARGE, path, *resumed, stderr=subprocess.DEVNULL) as process:
            while process.stdout.readline() != "step\n":
                pass
            process.send_signal(signal.SIGINT)
            while not (line := process.stdout.readline()).startswith("saving"):
                pass
            time.sleep(draws.random() / 2)
            process.send_signal(signal.SIGINT)
        assert checkpoint.read_metadata(path)["step"] == int(line.split()[1])
        assert path.stat().st_size > 500e6
        assert os.listdir(tmp_path) == ["run"], f"after pressing {pressing}"
        resumed = ["resumed"]
    assert read(path).metadata["step"] >= 10


# ---------------------------------------------------------------- files made to do harm

SECONDS, BYTES = 2.0, 500 << 20


def refused_quickly(path, loading=load):
    """Refused in words that name the file, in little time and little memory."""
    begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        loading(path)
    assert time.process_time() - begun < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) > len(str(path)) + 20


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    run = trained()
    return save(run, tmp_path_factory.mktemp("good") / "run"), run


def damage(content, draws):
    """Cut, lengthened, flipped, overwritten, shifted or repeated in one place."""
    place, size = draws.randrange(len(content)), draws.choice((1, 2, 8, 100, 4000))
    noise = draws.randbytes(size)
    return draws.choice(
        (
            lambda: content[:place],
            lambda: content + noise,
            lambda: content[:place] + noise + content[place + size :],
            lambda: content[:place] + noise + content[place:],
            lambda: content[:place] + content[place + size :],
            lambda: content[:place] + bytes(size) + content[place + size :],
            lambda: content[:8] + draws.randbytes(size) + content[8 + size :],
            lambda: draws.randbytes(8) + content[8:],
        )
    )()


def test_two_thousand_damaged_files_are_refused_quickly_and_lose_nothing(good, tmp_path):
    path, run = good
    content, draws, damaged = path.read_bytes(), random.Random(0), tmp_path / "damaged"
    for _ in range(2000):
        if (worse := damage(content, draws)) != content:
            damaged.write_bytes(worse)
            refused_quickly(damaged, draws.choice((load, load_model, read)))
            assert damaged.read_bytes() == worse
    assert path.read_bytes() == content
    assert same(load(path), run)


def with_spec(run, **changes):
    tensors, metadata = take_snapshot(run)
    spec = json.loads(metadata["spec"]) | changes
    return tensors, metadata | {"spec": json.dumps(spec)}


def with_fact(run, **changes):
    tensors, metadata = take_snapshot(run)
    return tensors, metadata | changes


def with_recipe(run, **changes):
    tensors, metadata = take_snapshot(run)
    return tensors, metadata | {"recipe": metadata["recipe"] | changes}


def with_corpus(run, **changes):
    tensors, metadata = take_snapshot(run)
    return tensors, metadata | {"corpus": metadata["corpus"] | changes}


def with_tensor(run, name, value):
    tensors, metadata = take_snapshot(run)
    return tensors | {name: value}, metadata


LONG = "x" * 10_000_000
CRAFTED = {
    "10,000 layers": lambda run: with_spec(run, layers=10_000),
    "10**9 layers": lambda run: with_spec(run, layers=10**9),
    "256 layers": lambda run: with_spec(run, layers=255),
    "10,000 layers on patches": lambda run: with_spec(
        run, patch={"size": 4, "d_model": 8, "layers": 10_000, "mixers": [["cumsum", {}]]}
    ),
    "a huge width": lambda run: with_spec(run, d_model=2**40),
    "a huge vocabulary": lambda run: with_spec(run, vocab_size=2**50),
    "a huge convolution": lambda run: with_spec(run, mixers=[["conv", {"width": 2**40}]]),
    "many heads": lambda run: with_spec(run, mixers=[["softmax", {"heads": 10**9}]]),
    "many mixers": lambda run: with_spec(run, mixers=[["conv", {"width": 3}]] * 10**6),
    "many contexts": lambda run: with_spec(
        run, ngrams={"contexts": list(range(1, 10**6)), "rows": 8, "dropout": 0.0}
    ),
    "many addresses": lambda run: with_spec(
        run, recall={"contexts": [4], "addresses": 2**60, "rows": 2**60}
    ),
    "a huge context": lambda run: with_spec(run, positions=["learned", {}], context=2**50),
    "half-lives of nothing": lambda run: with_spec(
        run, mixers=[["cumsum", {"half_lives": [1e-308, 1e308]}]]
    ),
    "a huge batch": lambda run: with_fact(run, batch=2_000_000_000),
    "a huge batch from the start": lambda run: with_recipe(run, batch=2_000_000_000),
    "a huge window": lambda run: with_recipe(run, window=2**60),
    "a huge seed": lambda run: with_recipe(run, seed=10**400),
    "a huge rate": lambda run: with_recipe(run, lr=1e400),
    "a long name": lambda run: with_fact(run, name=[LONG]),
    "a long log": lambda run: with_fact(run, log=[[0, "lr", -1.0]] * 10**6),
    "many states": lambda run: with_fact(run, state_rms={str(n): "x" for n in range(10**6)}),
    "deep metadata": lambda run: (take_snapshot(run).tensors, "[" * 10**6),
    "the whole system": lambda run: with_corpus(run, source="/usr", bytes=606_000_000),
    "the whole disk": lambda run: with_corpus(run, source="/", bytes=606_000_000),
    "processes": lambda run: with_corpus(run, source="/proc", bytes=606_000_000),
    "a device": lambda run: with_corpus(run, source="/dev/zero", bytes=1),
    "a large task": lambda run: with_corpus(
        run, source="task:noise:268435456:0", bytes=268_435_456
    ),
    "a stream": lambda run: with_corpus(run, source="fineweb-edu", bytes=100_000_000),
    "a huge tokenizer": lambda run: with_corpus(run, source="bpe-9999999999999999:stdlib"),
    "a long source": lambda run: with_corpus(run, source=LONG),
    "a long alphabet": lambda run: with_corpus(
        run, tokenizer=json.dumps({"kind": "Characters", "alphabet": LONG})
    ),
    "merges that double": lambda run: with_corpus(
        run,
        tokenizer=json.dumps(
            {"kind": "BPE", "merges": [[97, 97]] + [[n, n] for n in range(256, 316)]}
        ),
    ),
    "weights that are no numbers": lambda run: with_tensor(
        run, "model.head.weight", torch.full((256, 8), torch.nan)
    ),
    "moments that are negative": lambda run: with_tensor(
        run, "optimizer.0.exp_avg_sq", torch.full((256, 8), -1.0)
    ),
    "weights of a byte": lambda run: with_tensor(
        run, "model.head.weight", torch.zeros(256, 8, dtype=torch.int8)
    ),
    "a large unknown tensor": lambda run: with_tensor(run, "model.x", torch.zeros(10**7)),
    "40,000 unknown tensors": lambda run: (
        {f"model.{n}": torch.zeros(1) for n in range(40_000)},
        take_snapshot(run).metadata,
    ),
    "a long unknown name": lambda run: with_tensor(run, LONG, torch.zeros(1)),
}


@pytest.mark.parametrize("make", CRAFTED.values(), ids=CRAFTED)
def test_a_file_made_to_do_harm_is_refused_quickly(good, tmp_path, monkeypatch, make):
    monkeypatch.setattr(socket, "socket", None)  # nor does it reach the network
    path, run = good
    load(path)  # what torch imports on its first use is not the file's
    content = path.read_bytes()
    bad = crafted(tmp_path / "run", *make(run))
    before = os.listdir(tmp_path)
    refused_quickly(bad)
    assert os.listdir(tmp_path) == before
    assert path.read_bytes() == content


def test_a_hollow_file_of_four_gibibytes_and_one_of_many_tensors_are_refused_quickly(tmp_path):
    path = tmp_path / "run"
    shape = {"dtype": "F32", "shape": [1 << 30], "data_offsets": [0, 1 << 32]}
    metadata = take_snapshot(trained(1)).metadata
    facts = {"format": "3", "metadata": json.dumps(metadata), "sha256": "0" * 64}
    for header in ({"model.embed.weight": shape, "__metadata__": facts}, {"model.x": shape}):
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        os.truncate(path, 8 + len(text) + (1 << 32))
        for loading in (load, load_model):
            refused_quickly(path, loading)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({f"model.{n}": empty for n in range(400_000)}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    refused_quickly(path)
    for text in (b'{"a":[' + b"0," * 30_000_000 + b"0]}", b"[" * 60_000_000):
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        refused_quickly(path)
