"""Where things are kept: in a clone, installed, and where nothing can be written."""

import os
from pathlib import Path

import pytest

from qllk import folders

HERE = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch, tmp_path):
    """No folder is chosen, the user's home is a new one, and nothing was announced yet."""
    folders._temporary.cache_clear()
    for name in ("QLLK_CACHE", "QLLK_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield
    folders._temporary.cache_clear()


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(folders, "CLONE", None)


@pytest.fixture
def in_the_way(tmp_path):
    """A file where a folder should be made: nobody can write there, not even root."""
    (tmp_path / "file").write_text("a file is in the way")
    return tmp_path / "file" / "folder"


def test_a_clone_keeps_prepared_texts_beside_the_package(tmp_path):
    assert folders.CLONE == HERE
    assert folders.cache_folder() == HERE / "data" / "cache"
    assert folders.learner_folder() == tmp_path / "home" / ".qllk"


@pytest.mark.usefixtures("installed")
def test_an_installed_package_writes_into_the_users_own_folders(tmp_path):
    found = [folders.cache_folder(), folders.learner_folder()]
    assert all(tmp_path / "home" in folder.parents and folder.is_dir() for folder in found)
    assert len(set(found)) == 2


@pytest.mark.usefixtures("installed")
def test_a_learner_who_moves_from_a_clone_to_a_wheel_keeps_the_work(tmp_path):
    (tmp_path / "home" / ".qllk").mkdir(parents=True)
    assert folders.learner_folder() == tmp_path / "home" / ".qllk"


@pytest.mark.parametrize(
    ("variable", "find"),
    [("QLLK_CACHE", folders.cache_folder), ("QLLK_HOME", folders.learner_folder)],
)
def test_a_chosen_folder_goes_before_all_with_its_tilde_expanded(
    variable, find, monkeypatch, tmp_path
):
    monkeypatch.setenv(variable, "~/chosen one/ä")
    assert find() == tmp_path / "home" / "chosen one" / "ä"


def test_another_users_clone_is_read_but_new_texts_go_to_ones_own_cache(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(folders, "CLONE", tmp_path)
    (tmp_path / "data" / "cache").mkdir(parents=True)
    (tmp_path / "data" / "cache" / "ready.bin").touch()
    refusal = folders._refusal
    monkeypatch.setattr(
        folders, "_refusal", lambda path: "locked" if "data" in path.parts else refusal(path)
    )
    assert folders.cache_file("ready.bin") == tmp_path / "data" / "cache" / "ready.bin"
    assert tmp_path / "home" in folders.cache_file("new.bin").parents
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("variable", "find"),
    [("QLLK_CACHE", folders.cache_folder), ("QLLK_HOME", folders.learner_folder)],
)
def test_where_nothing_can_be_written_a_temporary_folder_is_used_and_the_user_told(
    variable, find, monkeypatch, in_the_way, capsys
):
    monkeypatch.setenv(variable, str(in_the_way))
    found = find()
    told = capsys.readouterr().err
    assert found.is_dir()
    assert (
        f"{in_the_way} cannot be written to (Not a directory), so {found} takes its place" in told
    )
    assert f"Set {variable} to a folder of your own" in told


def test_the_temporary_folder_stays_the_same_and_is_announced_once(monkeypatch, in_the_way, capsys):
    monkeypatch.setenv("QLLK_CACHE", str(in_the_way))
    found = {folders.cache_folder() for _ in range(3)}
    assert len(found) == 1
    (found.pop() / "text.bin").touch()
    assert folders.cache_file("text.bin").exists()
    assert capsys.readouterr().err.count("cannot be written to") == 1


@pytest.mark.parametrize("clone", [HERE, None])
def test_a_user_without_a_home_folder_can_work(monkeypatch, capsys, clone, tmp_path):
    monkeypatch.setattr(folders, "CLONE", clone)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for an unknown user
    monkeypatch.chdir(tmp_path)
    assert folders.learner_folder().is_absolute()
    assert folders.cache_folder().is_absolute()
    assert "this user has no home folder" in capsys.readouterr().err
    assert not list(tmp_path.glob("~*"))


def test_programs_that_need_a_home_folder_are_given_one(monkeypatch, capsys, in_the_way, tmp_path):
    folders.provide_home()
    assert os.environ["HOME"] == str(tmp_path / "home")
    monkeypatch.setenv("HOME", str(in_the_way))
    folders.provide_home()
    assert os.path.isdir(os.environ["HOME"])
    assert "Set HOME to a folder of your own" in capsys.readouterr().err
