"""The project's own files agree with each other, and what the documentation shows works."""

import argparse
import importlib.util
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from qllk.__main__ import main
from qllk.lab.lessons.exercises import EXERCISES
from qllk.lab.notebooks import find_pictures
from qllk.presets import PRESETS
from qllk.study.entries import ENTRIES

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "RESULTS.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
CONDA_NAMES = {
    "pytorch": "torch",
    "matplotlib-base": "matplotlib",
    "playwright-python": "playwright",
}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(page, language):
    return [code for name, code in BLOCK.findall(read(page)) if name == language]


# ---------------------------------------------------------------- packages


def split(requirement):
    name, bounds = re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", requirement).groups()
    return name, bounds


def from_pyproject():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    found = dict(map(split, project["dependencies"] + project["optional-dependencies"]["dev"]))
    return found | {"python": project["requires-python"]}


def from_environment():
    lines = re.findall(r"^ +- ([a-z].*[^:])$", read("environment.yml"), re.M)
    found = dict(map(split, lines))
    del found["pip"]
    return {CONDA_NAMES.get(name, name): bounds for name, bounds in found.items()}


def test_environment_yml_asks_for_what_pyproject_asks_for():
    assert from_environment() == from_pyproject()


def test_constraints_pin_every_direct_dependency():
    lines = read("constraints.txt").splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if "==" in line}
    wanted = {name.lower() for name in from_pyproject()} - {"python"}
    assert wanted <= pinned
    assert "torch==2.13.0" in lines


def test_lab_binds_to_loopback_and_keeps_the_token():
    assert "--ServerApp.ip=127.0.0.1" in read("qllk/lab/serve.py")
    assert "-m qllk lab" in read("Makefile")
    places = ("Makefile", "README.md", "qllk/lab/serve.py", ".devcontainer/devcontainer.json")
    for weakened in ("0.0.0.0", "token=''", 'token=""', "allow_origin", "disable_check_xsrf"):
        assert not [place for place in places if weakened in read(place)]


def test_the_container_for_development_installs_what_the_two_commands_need():
    container = json.loads(read(".devcontainer/devcontainer.json"))
    made = re.findall(r"make (\S+)", container["postCreateCommand"])
    assert made == [".venv/dev"]
    assert re.search(r"^\.venv/dev:", read("Makefile"), re.M)
    assert set(container["containerEnv"]) <= set(re.findall(r"\$\((\w+)\)", read("Makefile")))


def test_every_push_runs_all_tests_and_installs_the_wheel_on_three_systems():
    jobs = yaml.safe_load(read(".github/workflows/test.yml"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(step["uses"].startswith("actions/") for step in steps if "uses" in step)
    assert {"run": ".ci/run"} in jobs["everything"]["steps"]
    matrix = jobs["wheel"]["strategy"]["matrix"]
    assert {system.partition("-")[0] for system in matrix["system"]} == {
        *("ubuntu", "macos", "windows")
    }
    assert f">={matrix['python'][0]}" == from_pyproject()["python"]
    commands = [step.get("run", "") for step in jobs["wheel"]["steps"]]
    assert "qllk test" in commands


# ---------------------------------------------------------------- the front page


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))[1:])
def test_the_front_page_shows_each_lesson_with_its_minutes_and_its_picture(path):
    notebook = nbformat.read(path, as_version=4)
    minutes = map(int, re.findall(r"(\d+) to (?:read|do)", notebook.cells[0].source))
    lines = read("README.md").splitlines()
    line = next(line for line in lines if f"(notebooks/{path.name})" in line)
    image = path.parent / "images" / f"{path.stem}.png"
    assert f"| {sum(minutes)} |" in line
    assert f'src="notebooks/images/{image.name}"' in line
    assert image.read_bytes() == find_pictures(notebook)[-1], "refresh the notebook"


@pytest.mark.parametrize(
    "wing", sorted(path.parent.name for path in (ROOT / "qllk").glob("*/__init__.py"))
)
def test_every_wing_is_on_the_map_with_a_file_to_start_from(wing):
    lines = [line for line in read("README.md").splitlines() if f"[`{wing}/`](qllk/{wing})" in line]
    assert len(lines) == 1, f"README's map must have one line for [`{wing}/`](qllk/{wing})"
    assert re.search(rf"\(qllk/{wing}/\S+\.py\)", lines[0]), "name a file to start from"


LOGGERS = """
from types import SimpleNamespace
logged = []
writer = SimpleNamespace(add_scalar=lambda *values: logged.append(values))
run = SimpleNamespace(log=lambda *values, **at: logged.append((values, at)))
trainer = qllk.Trainer("gpt-nano", qllk.corpus("task:markov:9000"), qllk.Recipe(steps=2, window=16))
"""


def test_the_python_on_the_front_page_runs(tmp_path):
    first, part, logging = blocks("README.md", "python")
    checked = "assert len(logged) == 4 and qllk.build(spec) and qllk.probes.check_laws(Fading).hold"
    run = subprocess.run(
        [sys.executable, "-c", "\n".join([first, part, LOGGERS, logging, checked])],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=200,
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


# ---------------------------------------------------------------- what the documentation names


def prose(page):
    """The page without its blocks of code."""
    return BLOCK.sub("", read(page))


def paths(page):
    """Files and folders that a page links to, shows, or names in code outside a link."""
    link = r"!?\[[^]]*\]\(([^)#]+)[^)]*\)"
    linked = re.findall(link, prose(page)) + re.findall(r'src="([^"]+)"', prose(page))
    spans = " ".join(re.findall(r"`([^`]+)`", re.sub(link, "", prose(page))))
    named = re.findall(r"(?<!\S)[\w.-]+(?:/[\w.-]+)+|[\w-]+\.(?:py|md|yml|toml|txt|ipynb)\b", spans)
    return {path for path in linked + named if not path.startswith("http")}


def commands(page):
    """The command lines in the blocks of code that name no language, as lists of words."""
    for block in blocks(page, ""):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


@pytest.mark.parametrize("page", PAGES)
def test_every_path_in_the_documentation_exists(page):
    assert paths(page)
    assert not {path for path in paths(page) if not (ROOT / path).exists()}


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_every_name_of_the_library_in_the_documentation_can_be_imported(page):
    # In a table of what was renamed, only the last column is about today.
    text = re.sub(r"^\|.*\|(.*)\|$", r"\1", prose(page), flags=re.M)
    for name in set(re.findall(r"`(qllk(?:\.[A-Za-z_]\w*)+)", text)):
        pkgutil.resolve_name(name)


class Parsed(BaseException):
    """Carries the arguments out of the command line before it runs anything."""


def parse(arguments, monkeypatch):
    real = argparse.ArgumentParser.parse_args

    def stop(parser, *given):
        raise Parsed(real(parser, *given))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed) as found:
        main(arguments)
    return found.value.args[0]


@pytest.mark.parametrize(
    "words", [words for page in PAGES for words in commands(page)], ids=" ".join
)
def test_every_command_in_the_documentation_exists(words, monkeypatch):
    match words:
        case ["make", target]:
            assert re.search(rf"^{target}:", read("Makefile"), re.M), f"no target {target!r}"
        case ["pip", "install", "."]:
            assert "project" in tomllib.loads(read("pyproject.toml"))
        case ["python", "-m", "qllk", *arguments] | ["qllk", *arguments]:
            parsed = vars(parse(arguments, monkeypatch))
            options = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
            assert options <= set(parsed), "write options out"
            named = {parsed.get("model", "qllk-3"), *parsed.get("entries", ())}
            assert {name for name in named if not name.endswith(".json")} <= {*PRESETS, *ENTRIES}
        case ["torchrun", "--nproc-per-node", _, "-m", "qllk", *arguments]:
            parse(arguments, monkeypatch)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), f"no module {module!r}"
        case _:
            pytest.fail("a command of a kind that this test does not know")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_of_the_documentation_shows_commands(page):
    assert any(words[:3] == ["python", "-m", "qllk"] for words in commands(page))


def test_the_plan_for_teachers_names_every_exercise():
    plan = (ROOT / "notebooks" / "TEACHING.md").read_text()
    named = set(re.findall(r"`([a-z]+\.\w+)`", plan))
    exercises = {one.name for lesson in EXERCISES.values() for one in lesson}
    assert exercises <= named
    assert not {name for name in named - exercises if name.partition(".")[0] in EXERCISES}
