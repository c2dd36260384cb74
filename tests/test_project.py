"""The project's own files agree with each other."""

import re
import tomllib
from pathlib import Path

import nbformat
import pytest

from qllk.lab.notebooks import find_pictures

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {
    "pytorch": "torch",
    "matplotlib-base": "matplotlib",
    "playwright-python": "playwright",
}


def split(requirement):
    name, bounds = re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", requirement).groups()
    return name, bounds


def from_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = dict(map(split, project["dependencies"] + project["optional-dependencies"]["dev"]))
    return found | {"python": project["requires-python"]}


def from_environment():
    lines = re.findall(r"^  - ([a-z].*[^:])$", (ROOT / "environment.yml").read_text(), re.M)
    found = dict(map(split, lines))
    del found["pip"]
    return {CONDA_NAMES.get(name, name): bounds for name, bounds in found.items()}


def test_environment_yml_asks_for_what_pyproject_asks_for():
    assert from_environment() == from_pyproject()


def test_constraints_pin_every_direct_dependency():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if "==" in line}
    wanted = {name.lower() for name in from_pyproject()} - {"python"}
    assert wanted <= pinned
    assert "torch==2.13.0" in lines


def test_lab_binds_to_loopback_and_keeps_the_token():
    text = (ROOT / "Makefile").read_text() + (ROOT / "README.md").read_text()
    assert "--ServerApp.ip=127.0.0.1" in text
    for weakened in ("0.0.0.0", "token=''", 'token=""', "allow_origin", "disable_check_xsrf"):
        assert weakened not in text


def test_every_file_of_the_package_is_on_the_readmes_map():
    readme = (ROOT / "README.md").read_text()
    for path in sorted((ROOT / "qllk").rglob("*.py")):
        if path.name != "__init__.py":
            assert f"`{path.name}`" in readme, f"{path.name} is missing from README's map"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))[1:])
def test_the_front_page_shows_each_lesson_with_its_minutes_and_its_picture(path):
    notebook = nbformat.read(path, as_version=4)
    minutes = map(int, re.findall(r"(\d+) to (?:read|do)", notebook.cells[0].source))
    lines = (ROOT / "README.md").read_text().splitlines()
    line = next(line for line in lines if f"(notebooks/{path.name})" in line)
    image = path.parent / "images" / f"{path.stem}.png"
    assert f"| {sum(minutes)} |" in line
    assert f'src="notebooks/images/{image.name}"' in line
    assert image.read_bytes() == find_pictures(notebook)[-1], "refresh the notebook"
