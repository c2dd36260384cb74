"""The learner's folder: a table, files, and a folder that cannot be written to."""

import json

import pytest

from qllk.lab.folder import learner_folder, read_table, save, write_row


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_HOME", str(tmp_path / "new"))
    return tmp_path / "new"


def test_the_folder_is_in_the_home_of_the_user_unless_it_is_chosen(monkeypatch, home, tmp_path):
    assert learner_folder() == home
    monkeypatch.delenv("QLLK_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert learner_folder() == tmp_path / ".qllk"


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


def test_a_folder_that_cannot_be_written_to_stops_nothing(home, capsys):
    home.write_text("a file is in the way")
    save("mine/attention.py", "text")
    assert "(not saved: " in capsys.readouterr().out
