"""Text as bytes: corpora, their splits and floors, windows drawn from them; streams of documents.

A corpus is two memory-mapped arrays, one to train on and one held out: bytes, or the ids that a
tokenizer made of them. Splits are by file or by contiguous tail, never interleaved, so that no
held-out byte has a neighbour in training.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..files import ROOT, cache_folder, write_atomically
from .tokens import (
    BPE,
    Bytes,
    Characters,
    HuggingFace,
    Tokenizer,
    learn_merges,
    learn_merges_fast,
    tokenizer_from_json,
)

MANIFEST = ROOT / "data" / "corpora.json"
HELD_OUT = 0.1  # of a text that has no files to split by: its tail
STREAM_BYTES = 100_000_000  # of a stream, as a corpus
_TEXT_SUFFIXES = (
    ".c .cfg .cpp .css .csv .go .h .html .ini .java .js .json .md .py .rs .rst .sh .tex .toml .ts "
    ".txt .xml .yaml .yml"
)
# Where the text of a stream lies: a data set of the Hugging Face hub, and which part of it.
# FineWeb-Edu, Penedo 2024, 2406.17557, ODC-By 1.0; one crawl of it is more than any run reads.
_STREAMS = {"fineweb-edu": ("HuggingFaceFW/fineweb-edu", "CC-MAIN-2024-10")}
# "bpe-1024:stdlib": a text in the ids of a tokenizer that is trained on it, or that is given.
_IDS_OF = re.compile(r"(characters|bpe-[0-9]+|.+\.json):(.+)", re.DOTALL)
# Of the standard library: its tests, and what was installed beside it.
_LEFT_OUT = ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__")


_BYTES = Bytes()


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text to learn from and text to be judged on, as bytes or as the ids of another tokenizer.

    Shapes   train, valid (n,) of the tokenizer's type: uint8 for bytes
    `source` is what `corpus` was asked for, so that a checkpoint can ask again.
    """

    name: str
    train: np.ndarray
    valid: np.ndarray
    source: str = ""
    tokenizer: Tokenizer = _BYTES

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every id of both splits: equal only for equal text, equally split and cut."""
        digest = hashlib.sha256(len(self.train).to_bytes(8))
        digest.update(self.train)
        digest.update(self.valid)
        if self.tokenizer != _BYTES:
            digest.update(self.tokenizer.to_json().encode())
        return digest.hexdigest()

    @cached_property
    def text(self) -> Corpus:
        """The same text as bytes."""
        if self.tokenizer == _BYTES:
            return self
        splits = (self.tokenizer.decode(ids) for ids in (self.train, self.valid))
        train, valid = (np.frombuffer(split, np.uint8) for split in splits)
        return replace(self, train=train, valid=valid, tokenizer=_BYTES)

    @cached_property
    def bytes_per_id(self) -> float:
        """How much text an id stands for, over the held-out split; 1 for bytes."""
        return len(self.text.valid) / len(self.valid)

    def require(self, window: int) -> Corpus:
        """This corpus, if both splits hold at least one window and its target.

        Raises   ValueError naming the split that is too short
        """
        for split in ("train", "valid"):
            if (size := len(getattr(self, split))) <= window:
                raise ValueError(
                    f"corpus {self.name!r}: the {split} split has {size} ids, but a window of "
                    f"{window} needs at least {window + 1}; take a longer text or a shorter window"
                )
        return self


def corpus(name: str | Path = "stdlib") -> Corpus:
    """A corpus by name, or any file or folder of text by path.

    "stdlib" is the source of the running Python's standard library: real text, on every machine,
    no download. The others that have names are listed in data/corpora.json and are downloaded once,
    their checksum verified. Of a stream ("fineweb-edu") the first documents are fetched once.

    With "characters:" or "bpe-1024:" before it, the text comes as the ids of a tokenizer that is
    trained on it once: all its characters, or so many pieces of bytes. With the path of a
    tokenizer.json of Hugging Face before it ("tokenizer.json:stdlib"), as the ids of that one.

    Raises   FileNotFoundError when it is neither a known name nor a path
             ValueError when it holds no text, or none that the tokenizer can be trained on
             ConnectionError when it must be downloaded and cannot be
             ModuleNotFoundError when it is a stream and the package `datasets` is missing
    """
    manifest = json.loads(MANIFEST.read_text())
    path = Path(name).expanduser()
    if made := _IDS_OF.fullmatch(str(name)):
        text = corpus(made[2])
        found, name = _in_ids(made[1], text), f"{made[1]}:{text.source}"
    elif name == "stdlib":
        found = _stdlib()
    elif name in manifest:
        found = _downloaded(str(name), manifest[name])
    elif name in _STREAMS:
        found = _streamed(str(name))
    elif path.is_file():
        found, name = _from_file(path), path.resolve()
    elif path.is_dir() and str(name):  # Path("") would be the folder one happens to stand in
        found, name = _from_folder(path), path.resolve()
    else:
        raise FileNotFoundError(f"no corpus {str(name)!r}: give {describe_names()}")
    return replace(found, source=str(name))


def describe_names() -> str:
    """What `corpus` understands, for people."""
    return (
        f"a file, a folder or one of {', '.join(corpus_names())}; before it, if it shall not come "
        "as bytes, 'characters:', 'bpe-1024:' or the path of a tokenizer.json and a colon"
    )


def corpus_names() -> list[str]:
    """The names that `corpus` knows."""
    return ["stdlib", *json.loads(MANIFEST.read_text()), *_STREAMS]


# ---------------------------------------------------------------- where text comes from


def _stdlib() -> Corpus:
    folder = Path(sysconfig.get_path("stdlib"))
    files = _files(folder, {".py"}, leave_out=_LEFT_OUT)
    facts = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]
    version = ".".join(map(str, sys.version_info[:3]))
    return _from_files("stdlib", f"stdlib-{version}-{_stamp(facts)}", folder, files)


def _from_folder(folder: Path) -> Corpus:
    files = _files(folder, _TEXT_SUFFIXES.split())
    if not files:
        raise ValueError(
            f"no text under {str(folder)!r}: looked for files ending in "
            f"{_TEXT_SUFFIXES}; give one file by its path instead"
        )
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return _from_files(folder.resolve().name, f"folder-{_stamp(facts)}", folder, files)


def _files(folder: Path, suffixes, leave_out=()) -> list[Path]:
    """All files below with such a suffix, sorted; nothing hidden, and no folder of `leave_out`."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in leave_out and not f.startswith(".")]
        paths = [Path(place, name) for name in names if not name.startswith(".")]
        found += [path for path in paths if path.suffix.lower() in suffixes and path.is_file()]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _from_file(path: Path, name: str | None = None) -> Corpus:
    """A file is mapped where it lies; its last tenth is held out."""
    size = path.stat().st_size
    if size < 2:
        raise ValueError(f"{str(path)!r} has {size} bytes; there is nothing to learn from")
    data = np.memmap(path, np.uint8, mode="r")
    return Corpus(name or path.stem, *_split_tail(data))


def _in_ids(kind: str, text: Corpus) -> Corpus:
    """The text in the ids of a tokenizer; that and they are kept in the cache."""
    if text.tokenizer != _BYTES:
        raise ValueError(f"{kind!r} takes a text in bytes, and {text.name!r} is in other ids")
    train, valid = _whole_characters(text)
    tokenizer = _tokenizer(kind, text.fingerprint[:16], train, valid)
    key = f"ids-{_stamp((tokenizer.to_json(), text.fingerprint))}"
    splits = _mapped(key, lambda: map(tokenizer.encode, (train, valid)), tokenizer.dtype)
    return Corpus(f"{Path(kind).stem}:{text.name}", *splits, tokenizer=tokenizer)


def _tokenizer(kind: str, key: str, train: bytes, valid: bytes) -> Tokenizer:
    """Read, or trained once. Merges are learned from what is trained on. The alphabet is that of
    both splits, so that there is an id for every character.
    """
    if kind.endswith(".json"):
        if not Path(kind).is_file():
            raise FileNotFoundError(f"no tokenizer at {kind!r}; give a tokenizer.json's path")
        return HuggingFace.of(kind)
    path = cache_folder() / f"{kind}-{key}.json"
    if not path.exists():
        name, _, size = kind.partition("-")
        if name == "characters":
            made = Characters.train(train + valid)
        else:  # both ways to learn give the same merges
            learn = learn_merges_fast if find_spec("tokenizers") else learn_merges
            made = BPE.train(train, int(size), learn=learn)
        write_atomically(path, made.to_json().encode())
    return tokenizer_from_json(path.read_text())


def _whole_characters(text: Corpus) -> tuple[bytes, bytes]:
    """Both splits, the cut moved on where it falls into a character of UTF-8."""
    train, valid = bytes(text.train), bytes(text.valid)
    inside = next((i for i, byte in enumerate(valid[:3]) if byte & 0xC0 != 0x80), 0)
    return train + valid[:inside], valid[inside:]


# ---------------------------------------------------------------- downloads


def _downloaded(name: str, row: dict) -> Corpus:
    """Fetch once, into the cache, where only what passed its checksum gets its final name."""
    import pooch
    import requests

    folder, url = cache_folder(), row["url"]
    part = folder / f"{row['file']}.{row['sha256'][:8]}.part"
    try:
        path = pooch.retrieve(
            url,
            known_hash=f"sha256:{row['sha256']}",
            fname=row["file"],
            path=folder,
            downloader=lambda url, target, _: _fetch(url, part, target),
        )
    except requests.RequestException as error:
        raise ConnectionError(
            f"corpus {name!r} could not be downloaded from {url} ({type(error).__name__}); try "
            "again when online, where it goes on from what it has; or use 'stdlib', which needs "
            "no network, or give a file by its path"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"corpus {name!r}: what {url} sent is not the expected text, its SHA-256 differs from "
            f"the one in {MANIFEST.name}; it was thrown away. Try again, or give a file by its path"
        ) from error
    path = Path(path)
    return _from_file(_unzipped(path, row["unzip"]) if "unzip" in row else path, name)


def _fetch(url: str, part: Path, target: str) -> None:
    """Download to the file `part`, going on where an earlier try was cut off; then move it."""
    import requests
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    # Plain bytes, not a compressed stream of them, or "from byte n" would mean something else.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
        if answer.status_code == 416:  # the part is longer than the text: no part of it
            part.unlink()
        answer.raise_for_status()
        have = have if answer.status_code == 206 else 0
        total = have + int(answer.headers.get("Content-Length", 0)) or None
        with (
            open(part, "ab" if have else "wb") as file,
            tqdm(total=total, initial=have, desc=part.stem, unit="B", unit_scale=True) as bar,
        ):
            for piece in answer.iter_content(1 << 16):
                file.write(piece)
                bar.update(len(piece))
    os.replace(part, target)


def _unzipped(archive: Path, member: str) -> Path:
    path = archive.with_name(member)
    if not path.exists():
        with zipfile.ZipFile(archive) as file:
            write_atomically(path, file.read(member))
    return path


def _streamed(name: str) -> Corpus:
    """The first documents of a stream, a line end after each, kept in the cache as one file."""
    path = cache_folder() / f"{name}-{STREAM_BYTES}.txt"
    if not path.exists():
        text = bytearray()
        for document in documents(name):
            text += document.tobytes() + b"\n"
            if len(text) >= STREAM_BYTES:
                break
        write_atomically(path, text)
    return _from_file(path, name)


# ---------------------------------------------------------------- splits and cache


def _split_tail(data):
    cut = int(len(data) * (1 - HELD_OUT))
    return data[:cut], data[cut:]


def _split_by_file(folder: Path, files: list[Path]) -> tuple[bytes, bytes]:
    """One file in twenty is held out, picked by a hash of its name so that the pick is stable."""
    texts = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    texts = {name: text for name, text in texts.items() if text}
    if len(texts) < 2:
        return _split_tail(b"".join(texts.values()))
    held_out = {n for n in texts if hashlib.sha256(n.encode()).digest()[0] % 20 == 0}
    if not held_out or len(held_out) == len(texts):  # too few files for chance: the last one is
        held_out = {max(texts)}
    train = b"".join(text for name, text in texts.items() if name not in held_out)
    return train, b"".join(texts[name] for name in texts if name in held_out)


def _from_files(name: str, key: str, folder: Path, files: list[Path]) -> Corpus:
    """The text of files, split by file."""

    def read():
        texts = _split_by_file(folder, files)
        if not all(texts):
            raise ValueError(
                f"corpus {name!r}: the {len(files)} files under {str(folder)!r} hold "
                f"{sum(map(len, texts))} bytes, and two at least are needed"
            )
        return texts

    return Corpus(name, *_mapped(key, read))


def _mapped(key: str, make: Callable[[], Iterable], dtype=np.uint8) -> list[np.ndarray]:
    """Both splits, mapped from files that are made once; a file appears whole or not at all."""
    paths = [cache_folder() / f"{key}-{split}.bin" for split in ("train", "valid")]
    if not all(path.exists() for path in paths):
        for path, split in zip(paths, make(), strict=True):
            write_atomically(path, split)
    return [np.memmap(path, dtype, mode="r") for path in paths]


def _stamp(facts) -> str:
    """A short name for these facts about files: it changes when one of them does."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- documents


def documents(source: str | Path = "fineweb-edu", column: str = "text") -> Iterator[np.ndarray]:
    """One document after the other, as UTF-8 bytes, fetched as they are asked for.

    `source` is a name of STREAMS, or anything that `datasets.load_dataset` reads: a data set of the
    hub, or a folder of parquet or JSON lines, for which no network is needed.

    Shapes   yields (n,) uint8
    Raises   ModuleNotFoundError when the package `datasets` is missing
             ConnectionError when the source cannot be reached
             ValueError when the column is missing or holds no text
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"to stream {str(source)!r} takes the package `datasets`: pip install -e '.[text]'; "
            "or use corpus('stdlib'), which needs neither it nor a network"
        ) from error
    place, part = _STREAMS.get(str(source), (str(source), None))
    try:
        rows = datasets.load_dataset(place, part, split="train", streaming=True)
    except ConnectionError as error:
        raise ConnectionError(
            f"{str(source)!r} could not be reached ({error}); try again when online, or give a "
            "folder of parquet files, or use corpus('stdlib'), which needs no network"
        ) from error
    return (_text(row, column) for row in rows)


def _text(row: dict, column: str) -> np.ndarray:
    if not isinstance(row.get(column), str):
        raise ValueError(f"no text in column {column!r}; the columns are {', '.join(sorted(row))}")
    return np.frombuffer(row[column].encode(), np.uint8)
