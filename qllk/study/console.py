"""How the commands of `python -m qllk` talk: results, errors, and text that comes in pieces.

Texts, and names of files, may have characters that a terminal obeys instead of showing them, such
as those which move the cursor. A terminal is shown a mark in their place; files and pipes receive
them as they are.
"""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterable
from typing import TextIO

_OBEYED = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def replace_unencodable() -> None:
    """Let what the encoding of the output lacks be replaced, where it would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's stream has not, and shows everything
            stream.reconfigure(errors="replace")


def say(message: object) -> None:
    """Print a sentence for the user to standard error."""
    print(_showable(f"qllk: {message}", sys.stderr), file=sys.stderr)


def print_result(facts: dict, text: str, as_json: bool) -> None:
    """Print the facts as JSON, or the text."""
    print_text(json.dumps(facts, indent=2) if as_json else text)


def print_text(text: str) -> None:
    """Print a text that may come from a file."""
    print(_showable(text, sys.stdout))


def print_pieces(pieces: Iterable[bytes]) -> None:
    """Print a text as it comes: its very bytes to a file or a pipe, else its characters."""
    out = sys.stdout
    if hasattr(out, "buffer") and not out.isatty():
        out.flush()
        for piece in pieces:
            out.buffer.write(piece)
            out.buffer.flush()
    else:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for piece in pieces:
            print(_showable(decoder.decode(piece), out), end="", flush=True)
        print(decoder.decode(b"", final=True), end="")
    print()


def _showable(text: str, stream: TextIO) -> str:
    return text.translate(_OBEYED) if stream.isatty() else text
