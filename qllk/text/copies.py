"""Copies of texts in the cache: read once, whole, and sealed with a checksum.

A file that somebody may edit is never mapped into memory. It is copied, and a copy that was cut or
altered is noticed and made again.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..files import write_atomically
from ..folders import cache_file, cache_folder

MAX_BYTES = 1 << 30  # of a file, or of the texts in a folder
_MAX_FILES, _MAX_ENTRIES = 10_000, 50_000  # of a folder: texts, and all that is looked at
Facts = dict[Path, os.stat_result]  # of the files of a text, when they were found
Splits = tuple[Iterable, Iterable]  # both splits, in chunks


# ---------------------------------------------------------------- files


def find_files(folder: Path, suffixes, leave_out=()) -> Facts:
    """All files below `folder` with one of the suffixes, sorted, except hidden ones.

    Links to folders are not followed. Raises ValueError as soon as there is too much.
    """
    found: Facts = {}
    entries = size = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in leave_out and not f.startswith(".")]
        entries += len(folders) + len(names)
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in suffixes and path.is_file():
                found[path] = path.stat()
                size += found[path].st_size
        if entries > _MAX_ENTRIES or len(found) > _MAX_FILES or size > MAX_BYTES:
            raise ValueError(
                f"{str(folder)!r} is too large for a corpus: up to {place!r} there were "
                f"{entries:,} entries, of these {len(found):,} texts of {size:,} bytes; at most "
                f"{_MAX_ENTRIES:,} entries, {_MAX_FILES:,} texts and {MAX_BYTES:,} bytes are "
                "read. Nothing was copied; give a folder inside it"
            )
    return {path: found[path] for path in sorted(found, key=lambda p: p.relative_to(folder).parts)}


def read_chunks(open_file: Callable[[], BinaryIO], start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes from `start` to `stop` of a file, in chunks.

    Raises   ValueError when it cannot be read, or ends before `stop`
    """
    try:
        with open_file() as file:
            file.seek(start)
            while start < stop and (chunk := file.read(min(stop - start, 1 << 20))):
                start += len(chunk)
                yield chunk
    except OSError as error:
        raise ValueError(f"a text cannot be read: {error}") from error
    if start < stop:
        raise ValueError(_CHANGED.format(str(file.name)))


_CHANGED = "{!r} changed while it was read; try again, or give a copy that nobody writes to"


def check_unchanged(files: Facts) -> Iterator[bytes]:
    """Yield nothing.

    Raises   ValueError when a file is no longer as it was found: what was read may be a mixture
    """
    for path, seen in files.items():
        if not path.exists() or describe_files({path: path.stat()}) != describe_files({path: seen}):
            raise ValueError(_CHANGED.format(str(path)))
    yield from ()


def describe_files(files: Facts) -> list[tuple]:
    """What is known of files without reading them; it differs after one has changed."""
    return [(str(path), seen.st_size, seen.st_mtime_ns) for path, seen in files.items()]


# ---------------------------------------------------------------- sealed files


# A prepared text is one file: both splits, what else belongs to them, and at the end the lengths of
# the first split and of both, and the SHA-256 of all that.
_SEAL = struct.Struct("<QQ32s")


def prepare(
    key: str, make: Callable[[], tuple], family: str | None = None
) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Both splits, memory-mapped from a file in the cache, and the bytes stored with them.

    If there is no such file, or it is damaged, it is written from what `make` returns: the chunks
    of both splits and, optionally, the bytes to store with them. A process that has mapped an older
    file keeps that. If the key begins with a `family`, older files of this family are removed.
    """
    if found := _map_sealed(cache_file(f"{key}.bin")):
        return found
    path, content = cache_folder() / f"{key}.bin", _seal(*make())
    try:
        write_atomically(path, content)
        for older in path.parent.glob(f"{family}-*.bin") if family else ():
            if older != path:
                with suppress(OSError):  # as where another process has it open, on Windows
                    older.unlink()
        if found := _map_sealed(path):
            return found
        raise OSError(f"{str(path)!r} was written, but cannot be read back")
    except OSError as error:
        raise type(error)(f"{error}; set QLLK_CACHE to a folder with room for it") from error


def _seal(train: Iterable, valid: Iterable, stored: bytes = b"") -> Iterator[bytes]:
    """Yield the content of a sealed file."""
    digest, size, ends = hashlib.sha256(), 0, []
    for part in (train, valid, [stored]):
        for chunk in map(bytes, part):
            digest.update(chunk)
            size += len(chunk)
            yield chunk
        ends.append(size)
    digest.update(struct.pack("<QQ", *ends[:2]))
    yield _SEAL.pack(*ends[:2], digest.digest())


def sealed_bytes(key: str) -> int | None:
    """The size of the splits in the cached file of this key, not read; None if there is none."""
    path = cache_file(f"{key}.bin")
    return path.stat().st_size - _SEAL.size if path.is_file() else None


def _map_sealed(path: Path) -> tuple[np.ndarray, np.ndarray, bytes] | None:
    """The content of a sealed file, or None if there is none or it is damaged."""
    if not path.is_file() or path.stat().st_size < _SEAL.size:
        return None
    data = np.memmap(path, np.uint8, mode="r")
    cut, end, digest = _SEAL.unpack(data[-_SEAL.size :])
    if hashlib.sha256(data[:-32]).digest() != digest:
        return None
    return data[:cut], data[cut:end], bytes(data[end : -_SEAL.size])


def stamp(facts) -> str:
    """A short hash of facts about files, which changes when one of them does."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
