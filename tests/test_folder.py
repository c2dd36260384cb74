"""The learner's folder: a table, files, and a folder that cannot be written to."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers import facts

from qllk.lab import folder
from qllk.lab.folder import read_table, save, write_row


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_HOME", str(tmp_path / "new"))
    monkeypatch.setattr(folder, "_unsaved", {})
    return tmp_path / "new"


def test_facts_about_a_key_add_up(home):
    assert read_table() == {}
    assert write_row("03.growth", predicted=2.0) == {"predicted": 2.0}
    write_row("linear.halve", verdict="correct")
    assert write_row("03.growth", measured=2.1) == {"predicted": 2.0, "measured": 2.1}
    assert json.loads((home / "progress.json").read_text()) == read_table()
    assert read_table()["linear.halve"] == {"verdict": "correct"}


DAMAGES = {
    "a list": lambda path: path.write_text("[1]"),
    "cut off": lambda path: path.write_text("{"),
    "a number for a row": lambda path: path.write_text('{"a": 1}'),
    "nested rows": lambda path: path.write_text('{"a": {"predicted": {"b": 1}}}'),
    "a list for a number": lambda path: path.write_text('{"a": {"predicted": [1, 2]}}'),
    "a huge number": lambda path: path.write_text(f'{{"a": {{"measured": 1{"0" * 400}}}}}'),
    "a number of more digits than are read": lambda path: path.write_text(
        f'{{"a": {{"measured": 1{"0" * 5000}}}}}'
    ),
    "a word for a count": lambda path: path.write_text('{"a": {"tries": "many"}}'),
    "nothing for a fact": lambda path: path.write_text('{"a": {"measured": null}}'),
    "terminal escapes in a word": lambda path: path.write_text(
        '{"a": {"predicted": "\\u001b[2J"}}'
    ),
    "terminal escapes in a key": lambda path: path.write_text('{"\\u001b[2J": {"tries": 1}}'),
    "half a character": lambda path: path.write_text('{"\\ud800": {"tries": 1}}'),
    "a long word": lambda path: path.write_text(f'{{"a": {{"predicted": "{"x" * 1000}"}}}}'),
    "brackets without end": lambda path: path.write_text("[" * 100_000),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00\xd8"),
    "empty": lambda path: path.write_text(""),
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_table_that_cannot_be_used_is_named_and_left_alone_and_the_lesson_goes_on(
    home, capsys, damage
):
    home.mkdir()
    path = home / "progress.json"
    damage(path)
    before = facts(path)
    assert write_row("03.growth", predicted=2.0) == {"predicted": 2.0}
    assert write_row("03.growth", measured=2.1) == {"predicted": 2.0, "measured": 2.1}
    assert read_table()["03.growth"]["measured"] == 2.1
    told = capsys.readouterr().out
    assert told.count("(not saved: ") == 2
    assert str(path) in told
    assert facts(path) == before


def test_what_could_not_be_saved_is_saved_as_soon_as_the_table_can_be_used(home):
    home.mkdir()
    path = home / "progress.json"
    path.write_text("{")
    write_row("03.growth", predicted=2.0)
    path.unlink()
    write_row("linear.halve", verdict="correct")
    assert json.loads(path.read_text()) == {
        "03.growth": {"predicted": 2.0},
        "linear.halve": {"verdict": "correct"},
    }


def test_a_table_that_may_not_be_read_is_named(home, capsys, monkeypatch):
    write_row("03.growth", predicted=2.0)
    monkeypatch.setattr(Path, "read_bytes", Mock(side_effect=PermissionError(13, "no way")))
    assert write_row("03.growth", measured=3.0) == {"measured": 3.0}
    assert "progress.json cannot be read (no way)" in capsys.readouterr().out


def test_a_disk_that_fills_up_loses_nothing_of_the_session(home, capsys, monkeypatch):
    write_row("03.growth", predicted=2.0)
    with monkeypatch.context() as full:
        full.setattr(folder, "write_atomically", Mock(side_effect=OSError(28, "disk full")))
        assert write_row("03.growth", measured=3.0) == {"predicted": 2.0, "measured": 3.0}
        assert read_table()["03.growth"] == {"predicted": 2.0, "measured": 3.0}
    write_row("04.x", measured=1)
    assert json.loads((home / "progress.json").read_text())["03.growth"]["measured"] == 3.0


COUNT = """
import sys
from qllk.lab.folder import update_row, write_row
for i in range(40):
    write_row(f"{sys.argv[1]}.{i}", predicted=i)
    update_row("shared", lambda row: {"tries": row.get("tries", 0) + 1})
"""


@pytest.mark.slow
def test_four_processes_that_predict_at_once_lose_nothing(home):
    command = [sys.executable, "-c", COUNT]
    running = [subprocess.Popen([*command, str(i)]) for i in range(4)]
    assert [process.wait(120) for process in running] == [0] * 4
    table = read_table()
    assert table["shared"] == {"tries": 160}
    assert len(table) == 161


def test_a_learner_whose_folder_cannot_be_written_to_goes_on_and_is_told(home, capsys):
    home.write_text("a file is in the way")
    write_row("03.growth", predicted=2.0)
    assert write_row("03.growth", measured=2.1) == {"predicted": 2.0, "measured": 2.1}
    told = capsys.readouterr().err
    assert told.count("cannot be written to") == 1
    assert str(home) in told
    assert "Set QLLK_HOME" in told


def test_a_disk_that_fills_up_while_something_is_saved_stops_nothing(home, capsys, monkeypatch):
    monkeypatch.setattr(folder, "write_atomically", Mock(side_effect=OSError(28, "disk full")))
    save("mine/attention.py", "text")
    assert "(not saved: [Errno 28] disk full)" in capsys.readouterr().out
