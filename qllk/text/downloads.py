"""Downloads into the cache: resumed, bounded, verified, and made by one process at a time."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from time import monotonic

from filelock import FileLock

from ..folders import cache_folder

MAX_SECONDS = 3600.0  # for a download, for a stream, and for waiting for another process


def download(name: str, row: dict) -> Path:
    """The path of a downloaded file with the right checksum; other processes wait for it.

    Raises   ConnectionError when it cannot be downloaded
             ValueError when it is not what the manifest says
             OSError when it cannot be written
    """
    import pooch
    import requests

    folder, url = cache_folder(), row["url"]
    part = folder / f"{row['file']}.{row['sha256'][:8]}.part"
    try:
        with FileLock(folder / f".{row['file']}.lock", timeout=MAX_SECONDS):
            return Path(
                pooch.retrieve(
                    url,
                    known_hash=f"sha256:{row['sha256']}",
                    fname=row["file"],
                    path=folder,
                    downloader=lambda url, target, _: _fetch(row, part, target),
                )
            )
    except (requests.RequestException, TimeoutError) as error:
        raise ConnectionError(
            f"corpus {name!r} could not be downloaded from {url} ({type(error).__name__}); try "
            "again when online, which resumes the download; or use 'stdlib', which needs no "
            "network, or give the path of a file"
        ) from error
    except ValueError as error:
        part.unlink(missing_ok=True)
        raise ValueError(
            f"corpus {name!r}: {url} sent a different text than expected: its length or its "
            "SHA-256 differs from that in corpora.json, and it was discarded. "
            "Try again, or give the path of a file"
        ) from error
    except OSError as error:
        raise OSError(
            f"corpus {name!r} could not be written into {str(folder)!r}: "
            f"{error.strerror or error}; set QLLK_CACHE to another folder"
        ) from error


def _fetch(row: dict, part: Path, target: str) -> None:
    """Download to the file `part`, then rename it. A download that was interrupted is resumed."""
    import pooch

    if part.exists():
        with suppress(ValueError):  # a part of another text
            _receive(row["url"], part, row["bytes"])
            if pooch.file_hash(part) == row["sha256"]:
                return os.replace(part, target)
        part.unlink()
    _receive(row["url"], part, row["bytes"])
    os.replace(part, target)


def _receive(url: str, part: Path, limit: int) -> None:
    """Append what is missing to the file `part`.

    Raises   ValueError when there are more than `limit` bytes, TimeoutError after MAX_SECONDS
    """
    import requests
    from tqdm import tqdm

    have, end = part.stat().st_size if part.exists() else 0, monotonic() + MAX_SECONDS
    # Ask for uncompressed data: a range would otherwise count compressed bytes.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
        if answer.status_code == 416:
            raise ValueError("the part is as long as the whole text, or longer")
        answer.raise_for_status()
        have = have if answer.status_code == 206 else 0
        total = have + int(answer.headers.get("Content-Length", 0)) or None
        with (
            open(part, "ab" if have else "wb") as file,
            tqdm(total=total, initial=have, desc=part.stem, unit="B", unit_scale=True) as bar,
        ):
            for piece in answer.iter_content(1 << 14):
                if (have := have + len(piece)) > limit:
                    raise ValueError(f"more than {limit} bytes")
                if monotonic() > end:
                    raise TimeoutError
                file.write(piece)
                bar.update(len(piece))
