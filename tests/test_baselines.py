"""Baselines: n-gram tables against a slow and obvious count, and compressors."""

import bz2
import json
import math
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from qllk.probes import baselines
from qllk.text.corpora import Corpus, corpus
from qllk.text.tokens import Characters


def some_text(size, letters=b"abcd ", seed=0):
    return np.random.default_rng(seed).choice(np.frombuffer(letters, np.uint8), size)


def witten_bell(train, context, byte):
    """The probability of a byte by recursion over ever shorter contexts, counted from scratch."""
    if context is None:
        return 1 / 256
    n = len(context)
    after = [train[i + n] for i in range(len(train) - n) if train[i : i + n] == context]
    lower = witten_bell(train, context[1:] if n else None, byte)
    if not after:
        return lower
    kinds = len(set(after))
    return (after.count(byte) + kinds * lower) / (len(after) + kinds)


def test_tables_equal_a_slow_count():
    train, valid = some_text(300), some_text(60, b"abcdXY ", seed=1)
    got = baselines.table_losses(train, valid)
    train, valid = train.tobytes(), valid.tobytes()
    for order, name in enumerate(("unigram", "bigram", "trigram")):
        paid = [
            -math.log(witten_bell(train, valid[max(0, i - order) : i], byte))
            for i, byte in enumerate(valid)
        ]
        assert got[name] == pytest.approx(np.mean(paid), abs=1e-12)


def test_the_probabilities_of_all_bytes_sum_to_one():
    train = some_text(300)
    for context in (b"ab", b"aZ", b"ZZ"):
        text = b"".join(context + bytes([byte]) for byte in range(256))
        tables = [baselines._count_table(train, order) for order in range(3)]
        text = np.frombuffer(text, np.uint8)
        for probabilities in baselines._table_probabilities(tables, text):
            assert probabilities[2::3].sum() == pytest.approx(1.0, abs=1e-12)


def test_counting_in_pieces_counts_each_ngram_once():
    text = some_text(1000)
    for order in range(3):
        slow = Counter(text[i : i + order + 1].tobytes() for i in range(1000 - order))
        for piece in (1, 7, 999, 5000) if order < 2 else (400,):
            counts = baselines._count_ngrams(text, order, piece)
            (found,) = counts.nonzero()
            as_bytes = {int(n).to_bytes(order + 1, "big"): counts[n] for n in found}
            assert as_bytes == slow


def test_losses_looked_up_in_pieces_are_those_of_the_whole_text(monkeypatch):
    train, valid = some_text(300), some_text(100, b"abcdXY ", seed=1)
    whole = baselines.table_losses(train, valid)
    for piece in (2, 3, 50, 99):
        monkeypatch.setattr(baselines, "_PIECE", piece)
        assert baselines.table_losses(train, valid) == pytest.approx(whole, abs=1e-12)


def test_a_long_text_is_measured_on_its_beginning_and_the_names_say_so(monkeypatch):
    train, valid = some_text(3000), some_text(2000, b"abcdXY ", seed=1)
    beginning = baselines.measure_baselines(Corpus("short", train[:2000], valid[:1000]))
    monkeypatch.setattr(baselines, "_TRAIN_BYTES", 2000)
    monkeypatch.setattr(baselines, "_VALID_BYTES", 1000)
    measured = baselines.measure_baselines(Corpus("long", train, valid))
    assert list(measured) == [
        "uniform",
        *(f"{name} (first 0.0 MB)" for name in list(beginning)[1:]),
    ]
    assert list(measured.values()) == list(beginning.values())
    only_train = baselines.measure_baselines(Corpus("long", train, valid[:1000]))
    assert only_train == measured


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory in kB")
def test_a_long_held_out_split_needs_no_memory_of_its_own():
    """It was 80 bytes for each of its bytes, which here are 8 million."""
    code = """
import resource, sys
import numpy as np
from qllk.probes.baselines import table_losses
rng, peak = np.random.default_rng(0), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
text = rng.integers(0, 64, 8_000_000, np.uint8)
before = peak()
table_losses(text[:100_000], text)
print(peak() - before)
"""
    found = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert int(found.stdout) < 300 * 1024  # in kB


def test_baselines_of_real_text_fall_as_more_is_known():
    real = corpus("stdlib")
    measured = baselines.measure_baselines(
        Corpus("some", real.train[: 1 << 21], real.valid[: 1 << 18])
    )
    assert list(measured) == ["uniform", "unigram", "bigram", "trigram", "bz2", "lzma"]
    assert (
        8.0
        == measured["uniform"]
        > measured["unigram"]
        > measured["bigram"]
        > measured["trigram"]
        > 1
    )
    packed = bz2.compress(real.valid[: 1 << 18].tobytes(), 9)
    assert measured["bz2"] == 8 * len(packed) / (1 << 18)
    assert measured["lzma"] < measured["trigram"]


def test_no_baseline_gets_below_eight_bits_on_noise():
    """The trigram table pays for believing what it saw once; the others find nothing to believe."""
    noise = some_text(1 << 20, bytes(range(256)))
    measured = baselines.measure_baselines(
        Corpus("noise", noise[: -(1 << 17)], noise[-(1 << 17) :])
    )
    assert all(bits > 7.999 for bits in measured.values())
    assert all(bits < 8.1 for name, bits in measured.items() if name != "trigram")


def test_baselines_of_a_tiny_text_are_still_numbers():
    measured = baselines.measure_baselines(Corpus("tiny", some_text(1), some_text(2)))
    assert all(math.isfinite(bits) for bits in measured.values())


# ---------------------------------------------------------------- zpaq

# Like zpaq, it adds to an archive that exists. It needs 100 bytes, and one for each four of text.
FAKE = """#!{python}
import json, sys
from pathlib import Path
_, _, archive, file, *_ = sys.argv
with open({log!r}, "a") as log:
    print(json.dumps([sys.argv[1:], Path(file).read_text()]), file=log)
with open(archive, "ab") as out:
    out.write(bytes(100 + Path(file).stat().st_size // 4))
"""


def put_on_path(monkeypatch, folder, script):
    """Make this the only program `zpaq` that is found."""
    program = folder / "zpaq"
    program.write_text(script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize("tokenizer", [None, Characters.train(b"abcd ")])
def test_zpaq_is_charged_for_what_the_held_out_split_adds_to_one_stream(
    monkeypatch, tmp_path, tokenizer
):
    log = tmp_path / "log"
    put_on_path(monkeypatch, tmp_path, FAKE.format(python=sys.executable, log=str(log)))
    train, valid = some_text(400), some_text(80, seed=1)
    made = Corpus("some", train, valid)
    if tokenizer:
        splits = (tokenizer.encode(split.tobytes()) for split in (train, valid))
        made = Corpus("some", *splits, tokenizer=tokenizer)
    assert baselines.measure_zpaq(made) == {"zpaq": 8 * 20 / 80}
    first, second = map(json.loads, log.read_text().splitlines())
    assert first[1] == train.tobytes().decode()
    assert second[1] == (train.tobytes() + valid.tobytes()).decode()
    command = ["add", "archive.zpaq", "text", "-method", "58", "-threads", "1"]
    assert first[0] == second[0] == command


def test_where_zpaq_is_missing_it_has_no_row(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert baselines.measure_zpaq(Corpus("some", some_text(40), some_text(8))) == {}


def test_a_failure_of_zpaq_is_told_in_its_own_words(monkeypatch, tmp_path):
    fails = f"#!{sys.executable}\nimport sys\nsys.exit('zpaq error: out of memory')\n"
    put_on_path(monkeypatch, tmp_path, fails)
    with pytest.raises(OSError, match="status 1: 'zpaq error: out of memory'; it needs room for"):
        baselines.measure_zpaq(Corpus("some", some_text(40), some_text(8)))


def test_the_block_of_zpaq_covers_the_whole_text():
    block = (1 << 28) - 4096
    assert [baselines._zpaq_method(size) for size in (1, block - 1)] == ["58", "58"]
    assert baselines._zpaq_method(block) == "59"
    assert baselines._zpaq_method((1 << 31) - 5000) == "511"


@pytest.mark.skipif(not shutil.which("zpaq"), reason="needs the program zpaq")
def test_zpaq_remembers_what_the_training_split_said():
    train, other = (some_text(4000, bytes(range(256)), seed) for seed in (0, 1))
    known = baselines.measure_zpaq(Corpus("known", train, train[1000:3000]))["zpaq"]
    unknown = baselines.measure_zpaq(Corpus("unknown", train, other[:2000]))["zpaq"]
    assert 0 < known < 1
    assert 8 < unknown < 8.5
