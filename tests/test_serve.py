"""`qllk lab`: which notebooks it opens, what it copies, and what it asks of JupyterLab."""

import os
from pathlib import Path
from unittest.mock import Mock

import nbformat
import pytest
from jupyterlab.labapp import LabApp

from qllk.__main__ import main
from qllk.lab import serve

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.fixture
def lab(monkeypatch):
    """JupyterLab's options, in place of a server."""
    launch = Mock()
    monkeypatch.setattr(LabApp, "launch_instance", launch)
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "")
    return lambda: launch.call_args.args[0]


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """As if the package were installed from a wheel, for a learner who is new."""
    package = tmp_path / "site-packages" / "qllk"
    (package / "notebooks" / "images").mkdir(parents=True)
    for name in ("00_lab.ipynb", "01_first.ipynb", "images/01_first.png"):
        (package / "notebooks" / name).write_text(f"installed {name}")
    monkeypatch.setattr(serve, "CLONE", None)
    monkeypatch.setattr(serve, "PACKAGE", package)
    monkeypatch.setenv("QLLK_HOME", str(tmp_path / "home"))
    return package / "notebooks"


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_a_clone_opens_its_own_notebooks(lab):
    assert main(["lab"]) == 0
    assert lab() == ["--ServerApp.ip=127.0.0.1", str(NOTEBOOKS / "00_lab.ipynb")]


def test_options_of_jupyterlab_are_passed_on_and_others_have_none(lab, capsys):
    main(["lab", "--no-browser", "--port", "9000", "--ServerApp.port_retries=0"])
    assert lab()[1:-1] == ["--no-browser", "--port", "9000", "--ServerApp.port_retries=0"]
    with pytest.raises(SystemExit):
        main(["doctor", "--no-browser"])
    assert "--no-browser" in capsys.readouterr().err


def test_the_users_own_jupyter_settings_stay_in_force(lab, monkeypatch):
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "/etc/ours")
    main(["lab"])
    first, second = os.environ["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    assert (Path(first) / "labconfig" / "default_setting_overrides.json").is_file()
    assert second == "/etc/ours"


def test_a_wheel_opens_a_copy_in_the_learners_folder_and_leaves_its_own_alone(
    lab, wheel, tmp_path, capsys
):
    main(["lab"])
    opened = Path(lab()[-1])
    assert opened.name == "00_lab.ipynb"
    assert tmp_path / "home" in opened.parents
    assert names(opened.parent) == names(wheel)
    assert str(opened.parent) in capsys.readouterr().out


def test_what_a_learner_wrote_is_not_overwritten_and_what_was_deleted_comes_back(
    lab, wheel, capsys
):
    folder = serve.notebooks_folder()
    (folder / "01_first.ipynb").write_text("my answers")
    (folder / "00_lab.ipynb").unlink()
    assert serve.notebooks_folder() == folder
    assert (folder / "01_first.ipynb").read_text() == "my answers"
    assert (folder / "00_lab.ipynb").read_text() == "installed 00_lab.ipynb"
    told = capsys.readouterr().out
    assert "Not overwritten" in told
    assert "01_first.ipynb" in told
    assert "qllk lab --copy-to NEW_FOLDER" in told


def test_after_an_upgrade_the_new_lessons_are_opened_and_the_old_work_stays(wheel, monkeypatch):
    before = serve.notebooks_folder()
    (before / "01_first.ipynb").write_text("my answers")
    monkeypatch.setattr(serve, "__version__", "9.0")
    (wheel / "01_first.ipynb").write_text("a new lesson")
    after = serve.notebooks_folder()
    assert (after / "01_first.ipynb").read_text() == "a new lesson"
    assert (before / "01_first.ipynb").read_text() == "my answers"


def test_lessons_are_copied_to_the_folder_that_the_user_names(wheel, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = serve.notebooks_folder("~/Kurs für alle")
    assert found == tmp_path / "Kurs für alle"
    assert names(found) == names(wheel)


def test_in_a_clone_too_the_lessons_can_be_copied(tmp_path):
    found = serve.notebooks_folder(str(tmp_path / "copy"))
    assert names(found) == [name for name in names(NOTEBOOKS) if "checkpoints" not in name]
    assert nbformat.read(found / "00_lab.ipynb", as_version=4).cells


def test_a_link_that_leads_nowhere_is_not_followed(wheel, tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "00_lab.ipynb").symlink_to(tmp_path / "elsewhere")
    serve.notebooks_folder(str(tmp_path / "copy"))
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_is_no_place_for_the_lessons(lab, wheel, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["lab", "--copy-to", str(tmp_path / "file")]) == 1
    assert "can be copied to a folder only, and" in capsys.readouterr().err
