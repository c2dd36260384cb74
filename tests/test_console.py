"""What is printed where: to terminals, pipes, notebooks, and encodings that lack characters."""

import io
import sys

import pytest

from qllk.__main__ import main
from qllk.study import console
from qllk.text.corpora import corpus
from qllk.training import checkpoint
from qllk.training.recipe import Recipe
from qllk.training.trainer import Trainer

BAD = "red \x1b[31m, bell \x07, back \r, C1 \x9b2J, é and …\tend\n"


class Stream(io.TextIOWrapper):
    """An output that is a terminal or not, and remembers its bytes."""

    def __init__(self, encoding="utf-8", terminal=False):
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)
        self.terminal = terminal

    def isatty(self):
        return self.terminal

    @property
    def written(self):
        return self.buffer.getvalue()


class Cell(io.StringIO):
    """What a notebook has for standard output: without a buffer, and not to be reconfigured."""

    buffer = reconfigure = property(lambda self: self.missing)


@pytest.fixture
def output(monkeypatch):
    def replace(stream, name="stdout"):
        monkeypatch.setattr(sys, name, stream)
        return stream

    return replace


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_is_kept_from_obeying_a_text(output, terminal):
    out, err = output(Stream(terminal=terminal)), output(Stream(terminal=terminal), "stderr")
    console.print_result({}, BAD, as_json=False)
    console.print_pieces(bytes([byte]) for byte in BAD.encode())
    console.say(BAD)
    for stream in (out, err):
        assert (b"\x1b" in stream.written) is not terminal
        text = stream.written.decode()
        assert "é and …\tend\n" in text
        assert any(c in text for c in "\x07\r\x9b") is not terminal
        assert ("\ufffd[31m" in text) is terminal


def test_facts_are_json_that_no_terminal_obeys(output):
    out = output(Stream(terminal=True))
    console.print_result({"a": BAD}, "", as_json=True)
    assert all(32 <= byte < 127 or byte == 10 for byte in out.written)


@pytest.mark.parametrize(("encoding", "shown"), [("cp1252", "é and …"), ("ascii", "? and ?")])
def test_what_an_encoding_lacks_is_replaced(output, encoding, shown):
    out, err = output(Stream(encoding)), output(Stream(encoding), "stderr")
    console.replace_unencodable()
    console.print_result({}, f"{BAD}\N{SNOWMAN}\udc80", as_json=False)
    console.say(f"{BAD}\N{SNOWMAN}\udc80")
    assert f"{shown}\tend\n??" in out.written.decode(encoding)
    assert f"{shown}\tend\n??" in err.written.decode(encoding)


def test_a_character_that_comes_in_pieces_is_shown_whole(output):
    out = output(Cell())
    console.print_pieces([b"x", b"\xc3", b"\xa9", b"\xff", b"y", b"\xc3"])
    assert out.getvalue() == "xé\ufffdy\ufffd\n"


@pytest.fixture
def saved(tmp_path):
    (tmp_path / "text").write_bytes("où est l’été \x1b[2J? ".encode() * 40)
    recipe = Recipe(steps=2, batch=1, window=32, validate_every=2, validate_bytes=64)
    trainer = Trainer("qllk-2-nano", corpus(str(tmp_path / "text")), recipe)
    list(trainer)
    return checkpoint.save(trainer, tmp_path / "run")


PROMPT = "l’été \x1b[2J"


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_a_sample_is_written_to_a_file_byte_for_byte(output, saved, encoding):
    out = output(Stream(encoding))
    assert main(["sample", str(saved), "--prompt", PROMPT, "--length", "20"]) == 0
    assert out.written.startswith(PROMPT.encode())
    assert len(out.written.rstrip(b"\r\n")) <= len(PROMPT.encode()) + 20


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_a_sample_moves_no_cursor(output, saved, encoding):
    out = output(Stream(encoding, terminal=True))
    assert main(["sample", str(saved), "--prompt", PROMPT, "--length", "20"]) == 0
    assert b"\x1b" not in out.written
    assert "t? ?[2J" in out.written.decode(encoding).replace("é", "?").replace("\ufffd", "?")


def test_a_sample_is_shown_in_a_notebook(output, saved):
    out = output(Cell())
    assert main(["sample", str(saved), "--prompt", PROMPT, "--length", "20"]) == 0
    assert out.getvalue().startswith(PROMPT)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_samples_of_a_training_run_are_printed_in_any_encoding(output, tmp_path, encoding):
    (tmp_path / "\udcffté.txt").write_bytes("où est l’été? \N{SNOWMAN} ".encode() * 40)
    out = output(Stream(encoding))
    line = "train --model qllk-2-nano --steps 2 --batch 1 --window 32 --validate-bytes 64"
    options = ["--sample-at", "0", "--prompt", "\N{SNOWMAN}", "--precision", "float32"]
    assert main([*line.split(), "--corpus", str(tmp_path / "\udcffté.txt"), *options]) == 0
    assert b"seconds of training ---" in out.written


class Closed(Stream):
    """A pipe whose reader has gone."""

    def write(self, text):
        raise BrokenPipeError

    def fileno(self):
        return self.file.fileno()


def test_a_reader_who_has_seen_enough_is_no_error(output, capfd, tmp_path):
    out = output(Closed())
    with open(tmp_path / "out", "w") as out.file:
        assert main(["progress"]) == 1
    assert "Broken pipe" not in capfd.readouterr().err
