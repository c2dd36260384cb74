"""Corpora: text to train on and text held out, by name, by path, or streamed.

A corpus is two memory-mapped arrays of bytes, or of a tokenizer's ids. Texts are split by file or
by their tail, never interleaved, so that no held-out byte has a neighbour in the training split.
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
from itertools import islice
from pathlib import Path

import numpy as np

from ..files import write_atomically
from ..folders import cache_file
from .tasks import TASKS, make_task
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

_MANIFEST = Path(__file__).with_name("corpora.json")
_HELD_OUT = 0.1  # the tail of a text that is not split by file
_STREAM_BYTES = 100_000_000  # the size of a corpus made of a stream
_TEXT_SUFFIXES = (
    ".c .cfg .cpp .css .csv .go .h .html .ini .java .js .json .md .py .rs .rst .sh .tex .toml .ts "
    ".txt .xml .yaml .yml"
)
# Streams by name: a data set of the Hugging Face hub and one of its parts.
# FineWeb-Edu, Penedo 2024, 2406.17557, ODC-By 1.0; one crawl is more than any run reads.
_STREAMS = {"fineweb-edu": ("HuggingFaceFW/fineweb-edu", "CC-MAIN-2024-10")}
# "bpe-1024:stdlib": a corpus in the ids of a tokenizer that is trained on it or read from a file.
_TOKENIZED = re.compile(r"(characters|bpe-[0-9]+|.+\.json):(.+)", re.DOTALL)
# "task:copy:4000:7": a synthetic task, its size and its seed.
_TASK = re.compile(r"task:([a-z]+)(?::([0-9]+))?(?::([0-9]+))?")
# Excluded from the standard library: its tests, and installed packages.
_LEFT_OUT = ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__")
_BYTES = Bytes()
_TASK_BYTES = 1 << 18


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text to train on and text held out, as bytes or as a tokenizer's ids.

    Shapes   train, valid (n,) of the tokenizer's dtype: uint8 for bytes
    """

    name: str
    train: np.ndarray
    valid: np.ndarray
    source: str = ""  # the name to pass to `corpus`, which checkpoints store
    tokenizer: Tokenizer = _BYTES
    floor: float | None = None  # the lowest possible nats per byte; known for synthetic tasks

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all ids of both splits and of the tokenizer."""
        digest = hashlib.sha256(len(self.train).to_bytes(8))
        digest.update(self.train)
        digest.update(self.valid)
        if self.tokenizer != _BYTES:
            digest.update(self.tokenizer.to_json().encode())
        return digest.hexdigest()

    @cached_property
    def source_bytes(self) -> int | None:
        """The bytes of the text that `source` names, or None if they cannot be counted."""
        return _count_bytes(self.source)

    @cached_property
    def text(self) -> Corpus:
        """This corpus as bytes."""
        if self.tokenizer == _BYTES:
            return self
        splits = (self.tokenizer.decode(ids) for ids in (self.train, self.valid))
        train, valid = (np.frombuffer(split, np.uint8) for split in splits)
        return replace(self, train=train, valid=valid, tokenizer=_BYTES)

    @cached_property
    def bytes_per_id(self) -> float:
        """The mean number of bytes per id in the held-out split; 1 for bytes."""
        return len(self.text.valid) / len(self.valid)

    def require(self, window: int) -> Corpus:
        """Return this corpus if both splits have at least one window and its target.

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

        corpus("stdlib")   corpus("my/folder")   corpus("task:copy")   corpus("bpe-1024:stdlib")

    "stdlib" is the source of the running Python's standard library: real text, available
    everywhere without a download. The names in corpora.json are downloaded once and their
    checksums verified. Of a stream ("fineweb-edu") the first documents are fetched once. A
    synthetic task is "task:NAME", "task:NAME:SIZE" or "task:NAME:SIZE:SEED".

    Any of these may be prefixed by a tokenizer: "characters:" for its alphabet, "bpe-1024:" for a
    byte-level BPE with that many ids, both trained on the corpus once, or the path of a Hugging
    Face tokenizer.json followed by a colon.

    Raises   FileNotFoundError when it is neither a known name nor a path
             ValueError when it has no text, the tokenizer cannot be trained on it, or there is no
             such task
             ConnectionError when a download fails
             ModuleNotFoundError when it is a stream and the package `datasets` is missing
    """
    manifest = json.loads(_MANIFEST.read_text())
    path = Path(name).expanduser()
    if made := _TOKENIZED.fullmatch(str(name)):
        return _tokenize(made[1], corpus(made[2]))
    if str(name).startswith("task:"):
        return _read_task(str(name))
    if name == "stdlib":
        found = _read_stdlib()
    elif name in manifest:
        found = _download(str(name), manifest[name])
    elif name in _STREAMS:
        found = _read_stream(str(name))
    elif path.is_file():
        found, name = _from_file(path), path.resolve()
    elif path.is_dir() and str(name):  # Path("") would be the current folder
        found, name = _from_folder(path), path.resolve()
    else:
        raise FileNotFoundError(f"no corpus {str(name)!r}: give {describe_names()}")
    return replace(found, source=str(name))


def describe_names() -> str:
    """What `corpus` understands, in words, for help texts and errors."""
    return (
        f"a file, a folder, one of {', '.join(corpus_names())}, or task:NAME, where NAME is one of "
        f"{', '.join(TASKS)}; optionally prefixed by a tokenizer: 'characters:', 'bpe-1024:' or "
        "'path/to/tokenizer.json:'"
    )


def corpus_names() -> list[str]:
    """The names that `corpus` knows, tasks aside."""
    return ["stdlib", *json.loads(_MANIFEST.read_text()), *_STREAMS]


def task(name: str, size: int = _TASK_BYTES, seed: int = 0) -> Corpus:
    """A synthetic text with a known `floor`, see `tasks`; its last tenth is held out.

    Raises   ValueError when there is no such task, or the size does not fit in memory
    """
    text, floor = make_task(name, size, seed)
    return Corpus(name, *_split_tail(text), source=f"task:{name}:{size}:{seed}", floor=floor)


# ---------------------------------------------------------------- where text comes from


def _read_task(source: str) -> Corpus:
    if not (made := _TASK.fullmatch(source)):
        raise ValueError(
            f"{source!r} is not of the form task:NAME, task:NAME:SIZE or task:NAME:SIZE:SEED, "
            f"where NAME is one of {', '.join(TASKS)}"
        )
    name, *numbers = made.groups()
    return task(name, *(int(number) for number in numbers if number))


def _read_stdlib() -> Corpus:
    folder, files = _find_stdlib()
    facts = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]
    version = ".".join(map(str, sys.version_info[:3]))
    return _from_files("stdlib", f"stdlib-{version}-{_stamp(facts)}", folder, files)


def _find_stdlib() -> tuple[Path, list[Path]]:
    folder = Path(sysconfig.get_path("stdlib"))
    return folder, _find_files(folder, {".py"}, leave_out=_LEFT_OUT)


def _from_folder(folder: Path) -> Corpus:
    files = _find_files(folder, _TEXT_SUFFIXES.split())
    if not files:
        raise ValueError(
            f"no text under {str(folder)!r}: looked for files ending in "
            f"{_TEXT_SUFFIXES}; give one file by its path instead"
        )
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return _from_files(folder.resolve().name, f"folder-{_stamp(facts)}", folder, files)


def _find_files(folder: Path, suffixes, leave_out=()) -> list[Path]:
    """All files below `folder` with one of the suffixes, sorted, except hidden ones."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in leave_out and not f.startswith(".")]
        paths = [Path(place, name) for name in names if not name.startswith(".")]
        found += [path for path in paths if path.suffix.lower() in suffixes and path.is_file()]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _from_file(path: Path, name: str | None = None) -> Corpus:
    """A file is memory-mapped in place; its last tenth is held out."""
    size = path.stat().st_size
    if size < 2:
        raise ValueError(f"{str(path)!r} has {size} bytes; there is nothing to learn from")
    data = np.memmap(path, np.uint8, mode="r")
    return Corpus(name or path.stem, *_split_tail(data))


def _tokenize(kind: str, text: Corpus) -> Corpus:
    """The corpus in a tokenizer's ids; the tokenizer and the ids are cached."""
    if text.tokenizer != _BYTES:
        raise ValueError(f"{kind!r} tokenizes bytes, but {text.name!r} is tokenized already")
    if kind.endswith(".json"):
        kind = str(Path(kind).expanduser().resolve())
    tokenizer = _load_tokenizer(kind, text.fingerprint[:16], *_move_cut(text))
    return _encode(kind, text, tokenizer)


def _encode(kind: str, text: Corpus, tokenizer: Tokenizer) -> Corpus:
    """The corpus in a tokenizer's ids, which are cached."""
    train, valid = _move_cut(text)
    key = f"ids-{_stamp((tokenizer.to_json(), text.fingerprint))}"
    splits = _map_splits(key, lambda: map(tokenizer.encode, (train, valid)), tokenizer.dtype)
    name, source = f"{Path(kind).stem}:{text.name}", f"{kind}:{text.source}"
    return Corpus(name, *splits, source, tokenizer, text.floor)


def _load_tokenizer(kind: str, key: str, train: bytes, valid: bytes) -> Tokenizer:
    """Read a tokenizer, or train it once.

    Merges are learned from the training split. The alphabet is that of both splits, so that every
    character has an id.
    """
    if kind.endswith(".json"):
        if not Path(kind).is_file():
            raise FileNotFoundError(f"no tokenizer at {kind!r}; give the path of a tokenizer.json")
        return HuggingFace.of(kind)
    path = cache_file(f"{kind}-{key}.json")
    if not path.exists():
        name, _, size = kind.partition("-")
        if name == "characters":
            made = Characters.train(train + valid)
        else:  # both give the same merges
            learn = learn_merges_fast if find_spec("tokenizers") else learn_merges
            made = BPE.train(train, int(size), learn=learn)
        write_atomically(path, made.to_json().encode())
    return tokenizer_from_json(path.read_text())


def _move_cut(text: Corpus) -> tuple[bytes, bytes]:
    """Both splits; if the cut falls inside a UTF-8 character, it moves to the character's end."""
    train, valid = bytes(text.train), bytes(text.valid)
    inside = next((i for i, byte in enumerate(valid[:3]) if byte & 0xC0 != 0x80), 0)
    return train + valid[:inside], valid[inside:]


# ---------------------------------------------------------------- downloads


def _download(name: str, row: dict) -> Corpus:
    """Download once into the cache; a file gets its final name only after its checksum."""
    import pooch
    import requests

    folder, url = cache_file(row["file"]).parent, row["url"]
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
            "again when online, which resumes the download; or use 'stdlib', which needs no "
            "network, or give the path of a file"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"corpus {name!r}: {url} sent a different text than expected: its SHA-256 differs "
            f"from the one in {_MANIFEST.name}, and it was discarded. "
            "Try again, or give the path of a file"
        ) from error
    path = Path(path)
    return _from_file(_unzip(path, row["unzip"]) if "unzip" in row else path, name)


def _fetch(url: str, part: Path, target: str) -> None:
    """Download to the file `part`, resuming an interrupted download, then rename it."""
    import requests
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    # Ask for uncompressed data: a range would otherwise count compressed bytes.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
        if answer.status_code == 416:  # longer than the whole text, so it belongs to another
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


def _unzip(archive: Path, member: str) -> Path:
    path = archive.with_name(member)
    if not path.exists():
        with zipfile.ZipFile(archive) as file:
            write_atomically(path, file.read(member))
    return path


def _read_stream(name: str) -> Corpus:
    """The first documents of a stream, each followed by a newline, cached as one file."""
    path = cache_file(f"{name}-{_STREAM_BYTES}.txt")
    if not path.exists():
        text = bytearray()
        for document in documents(name):
            text += document.tobytes() + b"\n"
            if len(text) >= _STREAM_BYTES:
                break
        write_atomically(path, text)
    return _from_file(path, name)


# ---------------------------------------------------------------- splits and cache


def _split_tail(data):
    cut = int(len(data) * (1 - _HELD_OUT))
    return data[:cut], data[cut:]


def _split_by_file(folder: Path, files: list[Path]) -> tuple[bytes, bytes]:
    """Hold out one file in twenty, chosen by a hash of its name, which makes the choice stable."""
    texts = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    texts = {name: text for name, text in texts.items() if text}
    if len(texts) < 2:
        return _split_tail(b"".join(texts.values()))
    held_out = {n for n in texts if hashlib.sha256(n.encode()).digest()[0] % 20 == 0}
    if not held_out or len(held_out) == len(texts):  # too few files: hold out the last one
        held_out = {max(texts)}
    train = b"".join(text for name, text in texts.items() if name not in held_out)
    return train, b"".join(texts[name] for name in texts if name in held_out)


def _from_files(name: str, key: str, folder: Path, files: list[Path]) -> Corpus:
    """A corpus of files, split by file."""

    def read():
        texts = _split_by_file(folder, files)
        if not all(texts):
            raise ValueError(
                f"corpus {name!r}: the {len(files)} files under {str(folder)!r} have "
                f"{sum(map(len, texts))} bytes in all, but at least two are needed"
            )
        return texts

    return Corpus(name, *_map_splits(key, read))


def _map_splits(key: str, make: Callable[[], Iterable], dtype=np.uint8) -> list[np.ndarray]:
    """Both splits, memory-mapped from files in the cache, which are made once."""
    paths = [cache_file(f"{key}-{split}.bin") for split in ("train", "valid")]
    if not all(path.exists() for path in paths):
        for path, split in zip(paths, make(), strict=True):
            write_atomically(path, split)
    return [np.memmap(path, dtype, mode="r") for path in paths]


def _stamp(facts) -> str:
    """A short hash of facts about files, which changes when one of them does."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- the text of a saved run

_MOST_BYTES, _MOST_TASK_BYTES, _MOST_FOLDERS = 1 << 30, 1 << 22, 2000  # looked for unasked


def find_again(source: str, size: int | None) -> Corpus:
    """The text of a saved run as bytes, by the corpus's source and its `source_bytes`.

    Both may come from someone else's file. So nothing is downloaded, and nothing is read that has
    another size or more than 1 GiB; a path, whose size must be known, is not read without it.

    Raises   FileNotFoundError when it is not on this machine
             ValueError when it has another size, or is too large
    """
    name, found = _split_source(source)[1], _count_bytes(source)
    if found is None:
        raise FileNotFoundError(
            f"there is no text {name!r} on this machine, or it is a folder of more than "
            f"{_MOST_FOLDERS:,} others; it is neither downloaded nor searched"
        )
    if size != found and (size is not None or Path(name).expanduser().exists()):
        had = "an unknown number of" if size is None else f"{size:,}"
        raise ValueError(f"it had {had} bytes, but {name!r} has {found:,} now")
    if found > (_MOST_TASK_BYTES if name.startswith("task:") else _MOST_BYTES):
        raise ValueError(f"{name!r} has {found:,} bytes, too many to be read unasked")
    return corpus(name)


def encode_corpus(text: Corpus, tokenizer: Tokenizer, source: str) -> Corpus:
    """The corpus in the ids of a tokenizer that the prefix of `source` names, which is not read.

    Raises   ValueError when the corpus has another tokenizer, or its text cannot be encoded
    """
    if text.tokenizer == tokenizer:
        return text
    if text.tokenizer != _BYTES:
        raise ValueError(f"{text.name!r} has another tokenizer than the run; give its bytes")
    return _encode(_split_source(source)[0] or type(tokenizer).__name__, text, tokenizer)


def _split_source(source: str) -> tuple[str, str]:
    """The tokenizer and the text of "bpe-1024:stdlib"; "" for bytes."""
    made = _TOKENIZED.fullmatch(source)
    return made.groups() if made else ("", source)


def _count_bytes(source: str) -> int | None:
    """The bytes of the text that a source names, not read; None if it is not on this machine."""
    name = _split_source(source)[1]
    manifest, path = json.loads(_MANIFEST.read_text()), Path(name).expanduser()
    if made := _TASK.fullmatch(name):
        return int(made[2] or _TASK_BYTES)
    if name == "stdlib":
        files = _find_stdlib()[1]
    elif name in manifest:
        files = [cache_file(manifest[name].get("unzip", manifest[name]["file"]))]
    elif name in _STREAMS:
        files = [cache_file(f"{name}-{_STREAM_BYTES}.txt")]
    elif path.is_dir() and name:
        many = sum(1 for _ in islice(os.walk(path), _MOST_FOLDERS + 1)) > _MOST_FOLDERS
        files = [] if many else _find_files(path, _TEXT_SUFFIXES.split())
    else:
        files = [path]
    return sum(file.stat().st_size for file in files) if files and files[0].is_file() else None


# ---------------------------------------------------------------- documents


def documents(source: str | Path = "fineweb-edu", column: str = "text") -> Iterator[np.ndarray]:
    """Iterate over documents as UTF-8 bytes, fetched on demand.

    `source` is the name of a stream, or anything that `datasets.load_dataset` reads: a data set of
    the hub, or a folder of parquet or JSON lines, which needs no network.

    Shapes   yields (n,) uint8
    Raises   ModuleNotFoundError when the package `datasets` is missing
             ConnectionError when the source cannot be reached
             ValueError when the column is missing or has no text
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"streaming {str(source)!r} needs the package `datasets`: pip install datasets; "
            "or use corpus('stdlib'), which needs neither the package nor a network"
        ) from error
    place, part = _STREAMS.get(str(source), (str(source), None))
    try:
        rows = datasets.load_dataset(place, part, split="train", streaming=True)
    except ConnectionError as error:
        raise ConnectionError(
            f"{str(source)!r} could not be reached ({error}); try again when online, or give a "
            "folder of parquet files, or use corpus('stdlib'), which needs no network"
        ) from error
    return (_read_text(row, column) for row in rows)


def _read_text(row: dict, column: str) -> np.ndarray:
    if not isinstance(row.get(column), str):
        raise ValueError(f"no text in column {column!r}; the columns are {', '.join(sorted(row))}")
    return np.frombuffer(row[column].encode(), np.uint8)
