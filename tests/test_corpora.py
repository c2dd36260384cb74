"""Corpora by name and by path, their splits and cache, downloads, and streams."""

import contextlib
import hashlib
import http.server
import io
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from filelock import FileLock

from qllk.__main__ import main
from qllk.files import write_atomically
from qllk.model.families import build
from qllk.presets import PRESETS
from qllk.text import copies, corpora, downloads
from qllk.text.corpora import corpus, documents
from qllk.text.objectives import count_targets, next_token, token_losses
from qllk.text.tokens import BPE, Characters, HuggingFace
from qllk.text.windows import pack, shard

TEXT = bytes(np.random.default_rng(0).integers(32, 127, 5000, np.uint8))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return folder


def many(folder, count=100):
    """A folder of files with different first bytes."""
    return write(folder, **{f"part{n:03}_dot_py": b"<%03d>" % n * 3 for n in range(count)})


def cached(cache):
    """The files of the cache and when they were written, without those that serve as locks."""
    found = (path for path in cache.glob("*") if not path.name.endswith(".lock"))
    return {path.name: path.stat().st_mtime_ns for path in found}


def whole(found):
    return found.train.tobytes() + found.valid.tobytes()


# ---------------------------------------------------------------- the standard library


def test_the_standard_library_is_python_source_and_the_default():
    found = corpus()
    assert found.name == found.source == "stdlib"
    assert len(found.train) > 5_000_000
    assert 100_000 < len(found.valid) < len(found.train) / 5
    assert b"\ndef " in found.train.tobytes()
    assert b"\ndef " in found.valid.tobytes()


def test_the_standard_library_leaves_out_tests_and_what_was_installed(tmp_path, monkeypatch):
    lib = many(tmp_path / "lib", 30)
    write(
        lib,
        test__big_dot_py=b"TESTS",
        json__tests__one_dot_py=b"TESTS",
        **{"site-packages__torch_dot_py": b"TORCH", "notes_dot_txt": b"NOTES"},
        json__decoder_dot_py=b"JSON",
    )
    monkeypatch.setattr(corpora.sysconfig, "get_path", lambda name: str(lib))
    found = corpus("stdlib")
    text = whole(found)
    assert b"JSON" in text
    assert b"<007>" in text
    assert not any(word in text for word in (b"TESTS", b"TORCH", b"NOTES"))


def test_another_standard_library_gets_another_cache(tmp_path, monkeypatch, cache):
    for name, count in (("one", 30), ("two", 31)):
        lib = many(tmp_path / name, count)
        monkeypatch.setattr(corpora.sysconfig, "get_path", lambda name, lib=lib: str(lib))
        found = corpus("stdlib")
        assert len(found.train) + len(found.valid) == 15 * count


# ---------------------------------------------------------------- splits


def test_a_folder_is_split_by_file_without_loss_or_overlap(tmp_path):
    found = corpus(many(tmp_path / "texts"))
    pieces = [
        [bytes(split[i : i + 15]) for i in range(0, len(split), 15)]
        for split in (found.train, found.valid)
    ]
    assert sorted(pieces[0] + pieces[1]) == [b"<%03d>" % n * 3 for n in range(100)]
    assert pieces[0] == sorted(pieces[0])
    assert pieces[1] == [b"<%03d>" % n * 3 for n in (41, 46, 49)]  # by SHA-256 of their names
    assert found.name == "texts"


def test_which_files_are_held_out_does_not_change_when_others_come(tmp_path):
    before = corpus(many(tmp_path / "a")).valid.tobytes()
    after = corpus(many(tmp_path / "b", 150)).valid.tobytes()
    assert after.startswith(before)
    assert len(after) > len(before)


def test_of_two_files_the_last_is_held_out(tmp_path):
    folder = write(tmp_path / "two", b_dot_txt=b"second", a_dot_txt=b"first", c_dot_txt=b"")
    found = corpus(folder)
    assert (found.train.tobytes(), found.valid.tobytes()) == (b"first", b"second")


def test_a_file_holds_out_its_last_tenth(tmp_path):
    path = write(tmp_path, letter_dot_txt=TEXT) / "letter.txt"
    found = corpus(path)
    assert whole(found) == TEXT
    assert len(found.valid) == 500
    assert found.name == "letter"
    assert found.source == str(path.resolve())
    assert corpus(found.source).fingerprint == found.fingerprint


def test_a_folder_with_one_file_holds_out_its_tail(tmp_path):
    found = corpus(write(tmp_path / "one", only_dot_md=TEXT))
    assert len(found.train) == 4500
    assert len(found.valid) == 500


def test_a_folder_skips_what_is_hidden_or_no_text(tmp_path):
    folder = many(tmp_path / "texts", 30)
    write(folder, **{".git__x_dot_txt": b"HIDDEN", ".y_dot_txt": b"HIDDEN", "z_dot_png": b"IMAGE"})
    found = corpus(folder)
    text = whole(found)
    assert b"HIDDEN" not in text
    assert b"IMAGE" not in text
    assert len(text) == 450


def test_a_fingerprint_tells_text_and_split_apart():
    def of(train, valid):
        return corpora.Corpus("x", *(np.frombuffer(part, np.uint8) for part in (train, valid)))

    first = of(b"abc", b"de").fingerprint
    assert first == of(b"abc", b"de").fingerprint
    assert first not in (of(b"abcd", b"e").fingerprint, of(b"abc", b"df").fingerprint)


# ---------------------------------------------------------------- in the ids of a tokenizer

VERSES = b"so it goes, and so it went; \xc3\xa9t\xc3\xa9 comes once, and once it went\n" * 40


@pytest.mark.parametrize(("kind", "made"), [("characters", Characters), ("bpe-280", BPE)])
def test_a_text_in_ids_is_the_same_text(tmp_path, cache, kind, made):
    (tmp_path / "verses.txt").write_bytes(VERSES)
    plain, found = corpus(tmp_path / "verses.txt"), corpus(f"{kind}:{tmp_path / 'verses.txt'}")
    assert isinstance(found.tokenizer, made)
    assert len(found.train) < len(plain.train)
    assert found.train.max() < found.tokenizer.vocab_size
    assert found.train.dtype == found.tokenizer.dtype
    for split in ("train", "valid"):
        assert bytes(getattr(found.text, split)) == bytes(getattr(plain, split))
    assert found.bytes_per_id == len(plain.valid) / len(found.valid) > 1
    assert plain.text is plain
    assert plain.bytes_per_id == 1
    assert found.fingerprint != plain.fingerprint
    again = corpus(found.source)
    assert again.fingerprint == found.fingerprint
    assert again.tokenizer == found.tokenizer


def test_merges_are_learned_from_what_is_trained_on_and_the_alphabet_from_all(tmp_path, cache):
    (tmp_path / "text.txt").write_bytes(b"ab" * 450 + b"xy" * 50)
    bpe = corpus(f"bpe-257:{tmp_path / 'text.txt'}")
    assert bpe.tokenizer.tokens[256] == b"ab"
    assert corpus(f"characters:{tmp_path / 'text.txt'}").tokenizer.alphabet == "abxy"


def test_a_tokenizer_of_hugging_face_makes_a_corpus_too(tmp_path, cache, monkeypatch):
    library = pytest.importorskip("tokenizers")
    theirs = library.Tokenizer(library.models.BPE())
    theirs.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    theirs.train_from_iterator([VERSES.decode()], trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "verses.txt").write_bytes(VERSES)
    found = corpus(f"{tmp_path / 'tokenizer.json'}:{tmp_path / 'verses.txt'}")
    assert isinstance(found.tokenizer, HuggingFace)
    assert bytes(found.text.train) == bytes(corpus(tmp_path / "verses.txt").train)
    assert found.name == "tokenizer:verses"
    assert corpus(found.source).fingerprint == found.fingerprint
    monkeypatch.chdir(tmp_path)
    near = corpus("tokenizer.json:verses.txt")
    assert near.source == found.source == f"{tmp_path / 'tokenizer.json'}:{tmp_path / 'verses.txt'}"
    assert corpus("tokenizer.json:task:copy:3000").source.endswith("json:task:copy:3000:0")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*none\.json"):
        corpus(f"{tmp_path / 'none.json'}:{tmp_path / 'verses.txt'}")


def test_the_cut_of_a_text_in_ids_falls_between_characters(tmp_path, cache):
    (tmp_path / "text.txt").write_text("é" * 1001)
    found = corpus(f"characters:{tmp_path / 'text.txt'}")
    assert (len(found.train), len(found.valid)) == (901, 100)


def test_a_text_in_ids_is_found_again_from_anywhere_and_made_of_bytes(tmp_path, cache, monkeypatch):
    (tmp_path / "text.txt").write_bytes(VERSES)
    monkeypatch.chdir(tmp_path)
    found = corpus("characters:text.txt")
    assert found.source == f"characters:{tmp_path / 'text.txt'}"
    with pytest.raises(ValueError, match=r"'bpe-270' tokenizes bytes, but 'characters:text\.txt'"):
        corpus("bpe-270:characters:text.txt")
    with pytest.raises(ValueError, match="'characters' tokenizes bytes, but 'bpe-260:task"):
        corpus("characters:bpe-260:task:copy:3000")


def test_merges_are_the_same_with_and_without_the_library_that_is_faster(
    tmp_path, cache, monkeypatch
):
    pytest.importorskip("tokenizers")
    (tmp_path / "verses.txt").write_bytes(VERSES)
    fast = corpus(f"bpe-270:{tmp_path / 'verses.txt'}").tokenizer
    monkeypatch.setattr(corpora, "find_spec", lambda name: None)
    monkeypatch.setattr(corpora, "learn_merges_fast", lambda *_: pytest.fail("not installed"))
    monkeypatch.setenv("QLLK_CACHE", str(tmp_path / "other"))
    assert corpus(f"bpe-270:{tmp_path / 'verses.txt'}").tokenizer == fast


def test_ids_are_made_once(tmp_path, cache, monkeypatch):
    (tmp_path / "verses.txt").write_bytes(VERSES)
    first = corpus(f"bpe-280:{tmp_path / 'verses.txt'}")
    made = cached(cache)
    assert len(made) == 3  # the text, the tokenizer and the ids
    monkeypatch.setattr(BPE, "train", lambda *_: pytest.fail("trained again"))
    assert corpus(first.source).fingerprint == first.fingerprint
    assert cached(cache) == made


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("bpe-100", "vocab_size=100 is too small"),
        ("bpe-9000", "too large"),
        ("characters", "UTF-8"),
    ],
)
def test_a_text_that_a_tokenizer_cannot_be_trained_on_is_refused(tmp_path, cache, source, reason):
    (tmp_path / "text.txt").write_bytes(b"ab\xff" * 50)
    with pytest.raises(ValueError, match=rf"'{source}' cannot encode 'text': .*{reason}"):
        corpus(f"{source}:{tmp_path / 'text.txt'}")
    assert [path.name[:5] for path in cache.iterdir()] == ["file-"]
    with pytest.raises(FileNotFoundError, match="no corpus 'nowhere'"):
        corpus(f"{source}:nowhere")


# ---------------------------------------------------------------- the cache


def test_a_folder_is_prepared_once(tmp_path, cache):
    folder = many(tmp_path / "texts")
    first, made = corpus(folder), cached(cache)
    second = corpus(folder)
    assert cached(cache) == made
    assert len(made) == 1
    assert second.fingerprint == first.fingerprint
    assert isinstance(second.train, np.memmap)


def test_a_changed_folder_gets_a_new_cache_and_the_old_corpus_stays_valid(tmp_path, cache):
    folder = many(tmp_path / "texts")
    old, made = corpus(folder), cached(cache)
    before = old.train.tobytes()
    write(folder, part000_dot_py=b"changed!")
    new = corpus(folder)
    assert new.fingerprint != old.fingerprint
    assert old.train.tobytes() == before
    assert made.keys().isdisjoint(cached(cache))
    made = cached(cache)
    os.utime(folder / "part001.py", ns=(0, 0))  # rewritten, perhaps, in the same length
    corpus(folder)
    assert made.keys().isdisjoint(cached(cache))


DAMAGES = {
    "cut to half": lambda content: content[: len(content) // 2],
    "cut by one byte": lambda content: content[:-1],
    "overwritten": lambda content: b"x" * len(content),
    "one bit changed": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "longer": lambda content: content + b"more",
    "empty": lambda content: b"",
    "a few bytes": lambda content: b"odd",
}


@pytest.mark.parametrize("kind", ["file", "folder", "characters", "bpe-270"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_in_the_cache_is_noticed_and_made_again(tmp_path, cache, kind, damage):
    text = tmp_path / "texts" / "verses.txt"
    write(text.parent, verses_dot_txt=VERSES, other_dot_txt=VERSES[:500])
    name = {"file": f"{text}", "folder": f"{text.parent}"}.get(kind, f"{kind}:{text}")
    first = corpus(name)
    expected = first.fingerprint, first.tokenizer, whole(first)
    del first
    for path in cache.iterdir():
        path.write_bytes(damage(path.read_bytes()))
    again = corpus(name)
    assert (again.fingerprint, again.tokenizer, whole(again)) == expected
    made = cached(cache)
    assert corpus(name).fingerprint == expected[0]
    assert cached(cache) == made


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_stands_in_the_place_of_a_cached_file_is_named_and_left_alone(tmp_path, cache, make):
    folder = many(tmp_path / "texts")
    corpus(folder)
    (path,) = cache.iterdir()
    path.unlink()
    make(path)
    with pytest.raises(OSError, match=rf"{path.name}' cannot be written: it is a folder, a dev"):
        corpus(folder)
    assert not path.is_file()


def test_a_cache_without_room_is_named_with_its_cure(tmp_path, cache, monkeypatch):
    full = Mock(side_effect=OSError("'/cache' cannot be written: No space left on device"))
    monkeypatch.setattr(copies, "write_atomically", full)
    with pytest.raises(OSError, match=r"'/cache' cannot be .* on device; set QLLK_CACHE to a fol"):
        corpus(many(tmp_path / "texts"))


def test_a_cached_file_that_another_process_replaces_stays_valid_for_who_reads_it(tmp_path, cache):
    folder = many(tmp_path / "texts")
    first = corpus(folder)
    before = whole(first)
    (path,) = cache.iterdir()
    write_atomically(path, copies._seal([b"another"], [b"text"]))
    assert whole(first) == before
    assert whole(corpus(folder)) == b"anothertext"


def test_a_text_that_is_cut_and_rewritten_in_place_leaves_a_run_its_own(tmp_path):
    path = write(tmp_path, letter_dot_txt=TEXT) / "letter.txt"
    found = corpus(path)
    with open(path, "r+b") as file:  # as editors and `>` do, without a new file
        file.truncate(0)
        assert whole(found) == TEXT  # it was SIGBUS, which ends the process
        file.write(b"shorter")
    assert whole(found) == TEXT
    assert whole(corpus(path)) == b"shorter"


CHANGES = {
    "appended to": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "cut": lambda path: path.write_bytes(b"short"),
    "rewritten in the same length": lambda path: path.write_bytes(path.read_bytes()[::-1]),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_text_that_changes_while_it_is_read_is_no_corpus(
    tmp_path, cache, monkeypatch, change, place
):
    folder = many(tmp_path / "texts", 30)
    path = folder / "part007.py"
    seal = copies._seal

    def slowly(train, valid, stored=b""):
        yield next(content := seal(train, valid, stored))
        change(path)
        yield from content

    monkeypatch.setattr(copies, "_seal", slowly)
    os.utime(path, ns=(0, 0))
    with pytest.raises(ValueError, match=r"part007.py' changed while it was read|cannot be read"):
        corpus(path if place == "file" else folder)
    assert not cached(cache)


@pytest.mark.parametrize("texts", [{}, {"a_dot_txt": b""}, {"a_dot_txt": b"x"}])
def test_a_refused_folder_leaves_nothing_in_the_cache(tmp_path, cache, texts):
    corpus(many(tmp_path / "texts"))
    made = cached(cache)
    (tmp_path / "bad").mkdir()
    with pytest.raises(ValueError, match=r"bad'"):
        corpus(write(tmp_path / "bad", **texts))
    assert cached(cache) == made


# ---------------------------------------------------------------- errors


def refuses_to_read(monkeypatch):
    """From now on, opening any text is an error."""
    for name in ("prepare", "find_files", "make_task"):
        monkeypatch.setattr(corpora, name, lambda *_: pytest.fail("a text was opened"))


@pytest.mark.parametrize("size", ["9999999999999999", "1000000", "9" * 5000], ids=len)
def test_a_vocabulary_of_quadrillions_is_refused_before_a_text_is_opened(monkeypatch, size):
    refuses_to_read(monkeypatch)
    with pytest.raises(
        ValueError, match=f"asks for {size:.40} ids; at most 524,288 can be learned"
    ):
        corpus(f"bpe-{size}:stdlib")


def test_tokenizers_of_tokenizers_are_refused_however_many(monkeypatch):
    refuses_to_read(monkeypatch)
    with pytest.raises(ValueError, match="'characters' tokenizes bytes, but 'characters:"):
        corpus("characters:" * 20_000 + "stdlib")


def test_a_broken_tokenizer_is_refused_before_a_text_is_opened(monkeypatch, tmp_path):
    refuses_to_read(monkeypatch)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json' cannot be used: not a tokenizer"):
        corpus(f"{tmp_path / 'bad.json'}:stdlib")


def test_a_tokenizer_that_panics_on_a_text_is_named_with_the_text(tmp_path, cache):
    library = pytest.importorskip("tokenizers")
    theirs = library.Tokenizer(library.models.WordLevel({"a": 0}, unk_token="a"))
    theirs.pre_tokenizer = library.pre_tokenizers.Split(library.Regex("(a+)+$"), "isolated")
    theirs.save(str(tmp_path / "panics.json"))
    write(tmp_path, text_dot_txt=b"a" * 40 + b"b" * 10)
    with pytest.raises(ValueError, match=r"panics\.json' cannot encode 'text': .*Onig"):
        corpus(f"{tmp_path / 'panics.json'}:{tmp_path / 'text.txt'}")
    assert [name[:5] for name in cached(cache)] == ["file-"]


HARM = """
import json, resource, sys, time
from pathlib import Path
from qllk.text.corpora import corpus
from qllk.text.tokens import tokenizer_from_json

pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (500 << 20),) * 2)
start = time.process_time()
for name, content in json.loads(Path(sys.argv[1]).read_text()):
    try:
        corpus(name) if content is None else tokenizer_from_json(content)
    except (ValueError, OSError) as error:
        print(str(error)[:60])
    else:
        sys.exit(f"{name} was accepted")
print(time.process_time() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_what_is_made_to_do_harm_is_refused_within_little_memory_and_time(tmp_path, cache):
    library = pytest.importorskip("tokenizers")
    word = library.Tokenizer(library.models.WordLevel({"a": 0}, unk_token="a"))
    word = json.dumps(json.loads(word.to_str()))
    doubling = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    theirs = {
        "a huge id": word.replace('"a": 0', '"a": 4294967295'),
        "a long id": word.replace('"a"', f'"{"a" * 30_000_000}"'),
        "doubling": json.dumps(
            json.loads(word) | {"decoder": {"type": "Sequence", "decoders": [doubling] * 60}}
        ),
    }
    merges = [[97, 97], *([id, id] for id in range(256, 316))]
    cases = [
        *((name, json.dumps({"kind": "HuggingFace", "content": c})) for name, c in theirs.items()),
        ("doubling merges", json.dumps({"kind": "BPE", "merges": merges})),
        ("many merges", json.dumps({"kind": "BPE", "merges": [[1, 2]] * 1_000_000})),
        ("a long special", json.dumps({"kind": "Bytes", "specials": ["x" * 10_000_000]})),
        ("deep", "[" * 1_000_000),
        *((name, None) for name in ("bpe-9999999999999999:stdlib", "task:noise:268435456:0")),
        *(
            (name, None)
            for name in ("/dev/zero", "/proc/kcore", "/usr", "characters:" * 9999 + "a")
        ),
    ]
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases))
    done = subprocess.run((sys.executable, "-c", HARM, path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *told, seconds = done.stdout.splitlines()
    assert len(told) == len(cases)
    assert float(seconds) < 10
    assert not cached(cache)


@pytest.mark.parametrize("place", ["a pipe", "a device", "in a folder"])
def test_a_pipe_or_a_device_is_no_text(tmp_path, place):
    os.mkfifo(tmp_path / "pipe.txt")
    if place == "in a folder":
        found = corpus(many(tmp_path, 30))
        assert len(whole(found)) == 450
    else:
        path = tmp_path / "pipe.txt" if place == "a pipe" else "/dev/zero"
        with pytest.raises(ValueError, match="is neither a file nor a folder, but a device or a"):
            corpus(path)


def test_links_in_a_circle_are_not_followed(tmp_path):
    folder = many(tmp_path / "texts", 30)
    (folder / "loop").symlink_to(folder)
    (folder / "self.txt").symlink_to(folder / "self.txt")
    (folder / "gone.txt").symlink_to(tmp_path / "gone.txt")
    assert len(whole(corpus(folder))) == 450
    with pytest.raises((FileNotFoundError, OSError), match=r"self\.txt"):
        corpus(folder / "self.txt")


@pytest.mark.parametrize(
    ("bound", "most"), [("_MAX_FILES", 29), ("MAX_BYTES", 449), ("_MAX_ENTRIES", 29)]
)
def test_a_folder_like_usr_is_refused_before_anything_is_copied(
    tmp_path, cache, monkeypatch, bound, most
):
    folder = many(tmp_path / "texts", 30)
    monkeypatch.setattr(copies, bound, most)
    with pytest.raises(ValueError, match=r"texts' is too large for a corpus: .* 30 entries"):
        corpus(folder)
    assert not cached(cache)
    monkeypatch.setattr(copies, bound, most + 1)
    assert len(whole(corpus(folder))) == 450


def test_a_file_of_a_terabyte_is_refused_before_anything_is_copied(tmp_path, cache):
    with open(tmp_path / "large.txt", "wb") as file:
        file.truncate(1 << 40)
    for name in ("large.txt", ""):
        with pytest.raises(ValueError, match=r"1,099,511,627,776 bytes.* at most .*1,073,741,824"):
            corpus(tmp_path / name)
    assert not cached(cache)


ODD = os.fsdecode(b"odd\xff")


@pytest.mark.skipif(sys.platform == "darwin", reason="has no such names")
def test_a_name_that_is_not_utf8_is_a_name(tmp_path):
    folder = many(tmp_path / ODD, 30)
    (folder / f"{ODD}.txt").write_bytes(TEXT)
    for path, name in ((folder, "odd\ufffd"), (folder / f"{ODD}.txt", "odd\ufffd")):
        for prefix in ("", "characters:"):
            found = corpus(f"{prefix}{path}")
            assert found.name == prefix + name
            assert len(whole(found.text)) >= 5000
            assert corpus(found.source).fingerprint == found.fingerprint
            assert name in found.text.name


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_text_in_another_encoding_is_read_as_bytes_and_has_no_characters(tmp_path, encoding):
    text = ("Grüße " * 99).encode(encoding)
    path = write(tmp_path, letter_dot_txt=text) / "letter.txt"
    assert whole(corpus(path)) == text
    assert whole(corpus(f"bpe-259:{path}").text) == text
    with pytest.raises(ValueError, match=r"encode 'letter': .*not UTF-8 at byte \d.*to UTF-8"):
        corpus(f"characters:{path}")


def test_an_unknown_corpus_lists_the_known():
    with pytest.raises(
        FileNotFoundError, match=r"no corpus 'nonsense'.*stdlib, shakespeare, text8"
    ):
        corpus("nonsense")
    with pytest.raises(FileNotFoundError, match="no corpus ''"):
        corpus("")


@pytest.mark.parametrize(
    "name", ["words:stdlib", "bpe:stdlib", "bpe-x:stdlib", "characters:", "x:"]
)
def test_an_unknown_prefix_lists_the_known(name):
    with pytest.raises(
        FileNotFoundError, match=rf"no corpus '{name}'.*'characters:', 'bpe-1024:' or .*json:'"
    ):
        corpus(name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.txt"):
        corpus(tmp_path / "gone.txt")


def test_a_folder_without_text_says_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"no text under .*\.md .*\.txt.*one file by its path"):
        corpus(write(tmp_path / "images", a_dot_png=b"x"))


@pytest.mark.parametrize("text", [b"", b"x"])
def test_an_empty_file_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=f"has {len(text)} bytes; there is nothing to learn"):
        corpus(write(tmp_path, empty_dot_txt=text) / "empty.txt")


def test_a_corpus_shorter_than_a_window_names_the_split(tmp_path):
    found = corpus(write(tmp_path, letter_dot_txt=TEXT) / "letter.txt")
    assert found.require(499) is found
    with pytest.raises(ValueError, match=r"'letter': the valid split has 500 ids.*at least 501"):
        found.require(500)
    with pytest.raises(ValueError, match="the train split has 4500 ids"):
        found.require(5000)


# ---------------------------------------------------------------- downloads


class Server:
    """A local server of one file, which can cut off its answer and can ignore ranges."""

    def __init__(self, content):
        self.content, self.cut, self.ranges, self.asked = content, None, True, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                start = self.headers.get("Range")
                outer.asked.append(start)
                first = int(start[6:-1]) if start and outer.ranges else 0
                if first and first >= len(outer.content):
                    self.send_error(416)
                    return
                body = outer.content[first:]
                self.send_response(206 if first else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.cut])

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/text"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A manifest whose corpus "play" is served from here."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(TEXT * 50)  # several network packets long

    def manifest(content=None, **changes):
        digest = hashlib.sha256(server.content if content is None else content).hexdigest()
        row = {"url": server.url, "file": "play.txt", "sha256": digest, "bytes": 1 << 20} | changes
        path = tmp_path / "corpora.json"
        path.write_text(json.dumps({"play": row}))
        monkeypatch.setattr(corpora, "_MANIFEST", path)

    server.manifest = manifest
    manifest()
    yield server
    server.close()


def test_a_download_is_verified_and_kept(served, cache):
    found = corpus("play")
    assert whole(found) == served.content
    assert found.name == found.source == "play"
    corpus("play")
    assert len(served.asked) == 1
    assert {path[:4] for path in cached(cache)} == {"play"}
    assert len(cached(cache)) == 2  # what was sent, and its splits


def test_a_wrong_checksum_is_refused_and_nothing_stays(served, cache):
    served.manifest(content=b"what was expected")
    with pytest.raises(
        ValueError, match=r"'play'.*a different text than expected.*SHA-256.*the path of a file"
    ):
        corpus("play")
    assert not cached(cache)


def test_a_damaged_download_is_fetched_again(served, cache):
    corpus("play")
    for path in cache.glob("play*"):
        path.write_bytes(b"damaged")
    assert whole(corpus("play")) == served.content
    assert len(served.asked) == 2


def test_offline_the_message_names_the_cure(served, cache):
    served.close()
    with pytest.raises(ConnectionError, match=r"'play' could not be downloaded.*use 'stdlib'"):
        corpus("play")
    assert not cached(cache)


def test_an_answer_that_is_an_error_is_no_corpus(served, cache):
    served.http.RequestHandlerClass.do_GET = lambda self: self.send_error(404)
    with pytest.raises(ConnectionError, match=r"could not be downloaded .*HTTPError"):
        corpus("play")
    assert not cached(cache)


@pytest.mark.parametrize("ranges", [True, False], ids=["server knows ranges", "it does not"])
def test_a_download_cut_off_half_way_is_refused_and_then_goes_on(served, cache, ranges):
    served.cut, served.ranges = 150_000, ranges
    with pytest.raises(ConnectionError, match="resumes the download"):
        corpus("play")
    assert not (cache / "play.txt").exists()
    served.cut = None
    found = corpus("play")
    assert whole(found) == served.content
    assert served.asked[0] is None
    assert int(served.asked[1][6:-1]) >= 1 << 16
    assert not list(cache.glob("*.part"))


@pytest.mark.parametrize("size", [10, 250_000, 250_001, 1 << 21], ids=str)
@pytest.mark.parametrize("ranges", [True, False], ids=["server knows ranges", "it does not"])
def test_a_part_that_an_older_process_left_of_another_text_does_no_harm(
    served, cache, size, ranges
):
    served.ranges = ranges
    cache.mkdir()
    digest = hashlib.sha256(served.content).hexdigest()
    (cache / f"play.txt.{digest[:8]}.part").write_bytes(b"x" * size)
    assert whole(corpus("play")) == served.content
    assert not list(cache.glob("*.part"))


def test_a_complete_part_that_was_never_renamed_does_no_harm(served, cache):
    cache.mkdir()
    digest = hashlib.sha256(served.content).hexdigest()
    (cache / f"play.txt.{digest[:8]}.part").write_bytes(served.content)
    assert whole(corpus("play")) == served.content


@pytest.mark.parametrize("said", [None, 10**15], ids=["no length", "a long length"])
def test_an_answer_without_end_stops_at_the_length_in_the_manifest(served, cache, said):
    sent = []

    def answer(self):
        self.send_response(200)
        if said:
            self.send_header("Content-Length", str(said))
        self.end_headers()
        with contextlib.suppress(OSError):
            while len(sent) < 2000:
                self.wfile.write(b"x" * 100_000)
                sent.append(1)

    served.http.RequestHandlerClass.do_GET = answer
    served.manifest(bytes=1_000_000)
    with pytest.raises(ValueError, match="sent a different text than expected: its length"):
        corpus("play")
    assert not cached(cache)
    assert len(sent) < 500  # what buffers hold


def test_a_server_that_sends_a_byte_now_and_then_is_given_up_and_the_part_kept(
    served, cache, monkeypatch
):
    monkeypatch.setattr(downloads, "MAX_SECONDS", 0.0)
    with pytest.raises(ConnectionError, match=r"\(TimeoutError\); try again when online"):
        corpus("play")
    assert [name[-5:] for name in cached(cache)] == [".part"]


FETCH = """
import pathlib, sys
from qllk.text import copies, corpora, downloads
corpora._MANIFEST = pathlib.Path(sys.argv[1])
print(corpora.corpus("play").fingerprint)
"""


@pytest.mark.slow
def test_two_processes_that_fetch_one_corpus_from_a_slow_server_ask_once(served, cache, tmp_path):
    get = served.http.RequestHandlerClass.do_GET
    served.http.RequestHandlerClass.do_GET = lambda self: (time.sleep(3), get(self))
    command = (sys.executable, "-c", FETCH, str(tmp_path / "corpora.json"))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert len(served.asked) == 1
    assert {out.strip() for out, _ in said} == {corpus("play").fingerprint}


def test_who_waits_too_long_for_another_process_is_told(served, cache, monkeypatch):
    monkeypatch.setattr(downloads, "MAX_SECONDS", 0.1)
    cache.mkdir()
    with (
        FileLock(cache / ".play.txt.lock"),
        pytest.raises(ConnectionError, match=r"could not be downloaded from .*\(Timeout\)"),
    ):
        corpus("play")


def test_a_download_that_cannot_be_written_names_the_folder_and_the_cure(
    served, cache, monkeypatch
):
    monkeypatch.setattr(downloads, "_receive", Mock(side_effect=OSError(28, "No space left")))
    with pytest.raises(
        OSError, match=r"'play' could not be written into .*cache': No space left;.*QLLK_CACHE"
    ):
        corpus("play")


def test_a_zipped_text_is_unpacked_once(served, cache):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("inner", TEXT)
    served.content = packed.getvalue()
    served.manifest(file="play.zip", unzip="inner")
    found = corpus("play")
    assert whole(found) == TEXT
    made = cached(cache)
    assert len(made) == 2
    assert corpus("play").fingerprint == found.fingerprint
    assert cached(cache) == made


def test_every_corpus_in_the_manifest_says_what_it_is_and_may_be_used_for():
    rows = json.loads(corpora._MANIFEST.read_text())
    readme = (Path(__file__).parents[1] / "data" / "README.md").read_text()
    for name, row in rows.items():
        assert {"url", "file", "sha256", "bytes", "licence", "source"} <= set(row)
        assert len(bytes.fromhex(row["sha256"])) == 32
        assert f"`{name}` | {row['bytes']:,} |" in readme
        assert row["licence"] in readme


# ---------------------------------------------------------------- streams


class FakeDatasets:
    """Stands in for the package: remembers what was asked for, and counts what was read."""

    def __init__(self, rows=None, error=None):
        self.rows, self.error, self.asked, self.read = rows, error, [], 0

    def load_dataset(self, place, part, **options):
        self.asked.append((place, part, options))
        if self.error:
            raise self.error
        return self

    def __iter__(self):
        for row in self.rows or ({"text": f"document {n}"} for n in itertools.count()):
            self.read += 1
            yield row


@pytest.fixture
def fake(monkeypatch):
    def install(**options):
        package = FakeDatasets(**options)
        monkeypatch.setitem(sys.modules, "datasets", package)
        return package

    return install


def test_documents_are_streamed_as_they_are_asked_for(fake):
    package = fake()
    stream = documents("fineweb-edu")
    assert [bytes(text) for text in itertools.islice(stream, 2)] == [b"document 0", b"document 1"]
    assert package.read == 2
    assert package.asked == [
        (
            "HuggingFaceFW/fineweb-edu",
            "CC-MAIN-2024-10",
            {"split": "train", "streaming": True},
        )
    ]


def test_a_stream_can_be_shared_packed_and_asked_about(fake):
    fake()
    ids, owners = next(pack(shard(documents(), 1, 2), 30))
    assert bytes(ids.numpy()) == b"document 1document 3document 5d"
    assert count_targets(next_token(ids[None], owners[None]).targets) == 27


def test_a_model_learns_from_its_share_of_a_stream_document_by_document(fake):
    fake()
    model = build(PRESETS["gpt-nano"].but(d_model=16, layers=1), seed=0)
    adam = torch.optim.Adam(model.parameters(), lr=3e-2)
    losses = []
    for ids, owners in itertools.islice(pack(shard(documents(), 1, 2), 40), 40):
        batch = next_token(ids[None], owners[None])
        logits = model(*batch.inputs, documents=owners[None, :-1])
        loss = token_losses(logits, batch.targets).sum() / count_targets(batch.targets)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 1.5 < losses[0]


def test_a_stream_becomes_a_corpus_once(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "_STREAM_BYTES", 1000)
    package = fake()
    found = corpus("fineweb-edu")
    text = whole(found)
    assert text.startswith(b"document 0\ndocument 1\n")
    assert 1000 <= len(text) < 1020
    assert found.name == found.source == "fineweb-edu"
    assert package.read == text.count(b"\n")
    assert corpus("fineweb-edu").fingerprint == found.fingerprint
    assert len(package.asked) == 1


def test_a_stream_without_text_is_given_up(fake, monkeypatch, cache):
    fake(rows=({"text": ""} for _ in itertools.count()))
    monkeypatch.setattr(corpora, "MAX_SECONDS", 0.1)
    with pytest.raises(ConnectionError, match=r"'fineweb-edu' sent [\d,]+ of 100,000,000 bytes in"):
        corpus("fineweb-edu")
    assert not cached(cache)


def test_a_folder_of_parquet_is_streamed_by_the_real_package(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = ["one", "zwei ü", "", "three\nlines"]
    for n, piece in enumerate((texts[:2], texts[2:])):
        table = arrow.table({"text": piece, "score": [1] * len(piece)})
        parquet.write_table(table, tmp_path / f"{n}.parquet")
    assert [bytes(text).decode() for text in documents(tmp_path)] == texts
    with pytest.raises(ValueError, match="no text in column 'words'; the columns are score, text"):
        next(documents(tmp_path, column="words"))
    with pytest.raises(ValueError, match="no text in column 'score'"):
        next(documents(tmp_path, column="score"))


def test_without_the_package_the_message_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QLLK_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)  # which is how Python says "not installed"
    with pytest.raises(ModuleNotFoundError, match=r"pip install datasets.*'stdlib'"):
        documents()
    assert main(["train", "--corpus", "fineweb-edu", "--steps", "1"]) == 1
    assert "pip install datasets" in capsys.readouterr().err


def test_a_stream_out_of_reach_says_what_works_without_a_network(fake):
    fake(error=ConnectionError("Couldn't reach it"))
    with pytest.raises(ConnectionError, match=r"'fineweb-edu' could not be reached.*'stdlib'"):
        documents()


def test_of_a_text_that_is_edited_only_the_newest_copy_is_kept(tmp_path, cache):
    path, other = tmp_path / "a.txt", tmp_path / "b.txt"
    other.write_text("another text, which nobody edits. " * 3)
    corpora.corpus(other)
    for edit in range(4):
        path.write_text(f"a text after edit {edit}. " * (20 + edit))
        found = corpora.corpus(path)
        assert f"edit {edit}" in bytes(found.train).decode()
    assert len(list(cache.glob("file-*.bin"))) == 2
    folder = tmp_path / "folder"
    folder.mkdir()
    for edit in range(3):
        for name in "cde":
            (folder / f"{name}.txt").write_text(f"{name}{edit}" * (30 + edit))
        corpora.corpus(folder)
    assert len(list(cache.glob("folder-*.bin"))) == 1
