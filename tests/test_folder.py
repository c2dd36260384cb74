"""The learner's folder: a table, files, and a folder that cannot be written to."""

import json
from unittest.mock import Mock

import pytest

from qllk.lab import folder
from qllk.lab.folder import read_table, save, write_row


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_HOME", str(tmp_path / "new"))
    return tmp_path / "new"


def test_facts_about_a_key_add_up(home):
    assert read_table() == {}
    assert write_row("03.growth", predicted=2.0) == {"predicted": 2.0}
    write_row("linear.halve", verdict="correct")
    assert write_row("03.growth", measured=2.1) == {"predicted": 2.0, "measured": 2.1}
    assert json.loads((home / "progress.json").read_text()) == read_table()
    assert read_table()["linear.halve"] == {"verdict": "correct"}


@pytest.mark.parametrize("damage", ["[1]", "{", '{"a": 1}'])
def test_a_damaged_table_is_named_with_its_cure(home, damage):
    home.mkdir()
    (home / "progress.json").write_text(damage)
    with pytest.raises(ValueError, match=r"progress\.json is damaged .*; delete it to start again"):
        write_row("03.growth", predicted=2.0)


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
