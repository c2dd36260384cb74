"""A wheel: what is in it, and that it works in unusual places, for unusual users and settings."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

import qllk

ROOT = Path(__file__).resolve().parents[1]
NO_USER = 54321
# The commands of which every installation must be capable; few presets, because each is measured.
COMMANDS = """
import os
import sys
from pathlib import Path
from qllk import __main__ as program

assert Path(program.__file__).is_relative_to(os.environ["PYTHONPATH"]), program.__file__
program.PRESETS = {{name: program.PRESETS[name] for name in ("qllk-2-nano", "bert-nano")}}
train = "--model qllk-2-nano --window 64 --batch 2 --precision float32 --steps 2".split()
codes = [
    program.main(["doctor"]),
    program.main(["presets", "--window", "64"]),
    program.main(["train", *train, "--corpus", {text!r}, "--save", {run!r}]),
    program.main(["sample", {run!r}, "--length", "20", "--seed", "0"]),
]
sys.exit(f"exit codes {{codes}}" if any(codes) else 0)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of this tree, in which people have worked."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("qllk", "notebooks", "tests", "data"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("cache"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for litter in ("qllk/__pycache__", "notebooks/.ipynb_checkpoints", "data/cache"):
        (source / litter).mkdir(exist_ok=True)
        (source / litter / "litter.ipynb").touch()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(made), str(source)], check=True, timeout=250)
    return next(made.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The wheel unpacked as pip does it, without what it depends on."""
    folder = tmp_path_factory.mktemp("installed") / "site packages für qllk"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(folder), str(wheel)], check=True, timeout=250)
    return folder


# ---------------------------------------------------------------- what is in it


def files(folder, *patterns):
    found = (path for pattern in patterns for path in (ROOT / folder).rglob(pattern))
    return {
        path.relative_to(ROOT).as_posix()
        for path in found
        if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & {*path.parts}
    }


def test_the_wheel_has_the_package_the_lessons_and_nothing_else(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    lessons = {f"qllk/{name}" for name in files("notebooks", "*")}
    assert packed == files("qllk", "*") | lessons
    assert {"qllk/text/corpora.json", "qllk/notebooks/00_lab.ipynb"} <= packed


def test_the_wheel_has_a_command_and_needs_the_packages_of_pyproject(wheel):
    archive = zipfile.ZipFile(wheel)
    facts = {Path(name).name: name for name in archive.namelist() if ".dist-info/" in name}
    assert "qllk = qllk.__main__:main" in archive.read(facts["entry_points.txt"]).decode()
    needed = archive.read(facts["METADATA"]).decode()
    assert "Requires-Dist: platformdirs" in needed
    assert "Requires-Python: >=3.11" in needed
    assert wheel.name == f"qllk-{qllk.__version__}-py3-none-any.whl"


# ---------------------------------------------------------------- where it works


def run(arguments, site, tmp_path, flags=(), start=(), **settings):
    """Run a Python that finds the wheel first, in another folder; a setting of None is unset."""
    env = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    env |= {"QLLK_CACHE": str(tmp_path / "cache"), "QLLK_HOME": str(tmp_path / "home")} | settings
    return subprocess.run(
        [*start, sys.executable, *flags, *arguments],
        cwd=tmp_path,
        env={name: value for name, value in env.items() if value is not None},
        timeout=290,
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


def works(site, tmp_path, **how):
    """Assert that the commands work; returns what they printed to standard error."""
    text = tmp_path / "text.txt"
    text.write_text("Ein Text mit Ümläuten — und Strichen. " * 200, encoding="utf-8")
    places = {"text": str(text), "run": str(tmp_path / "run.safetensors")}
    program = tmp_path / "commands.py"
    program.write_text(COMMANDS.format(**places), encoding="utf-8")
    done = run([str(program)], site, tmp_path, **how)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "bits per byte" in done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.long
def test_a_wheel_works_from_a_path_with_spaces_and_umlauts(site, tmp_path):
    place = tmp_path / "mein Ordner für Läufe"
    place.mkdir()
    works(site, place)


@pytest.mark.long
@pytest.mark.parametrize(
    "how",
    [
        {"flags": ["-O"]},
        {"flags": ["-OO"]},
        {"flags": ["-W", "error"]},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "cp1252"},
        {"HOME": None, "XDG_CACHE_HOME": None, "XDG_DATA_HOME": None},
    ],
    ids=["-O", "-OO", "warnings are errors", "LC_ALL=C", "cp1252", "no HOME"],
)
def test_a_wheel_works_whatever_the_settings_of_python_and_the_shell(site, tmp_path, how):
    works(site, tmp_path, **how)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="permissions as Linux has them")
def test_a_user_whom_nobody_knows_without_a_home_can_use_a_read_only_installation(site, tmp_path):
    start = ()
    if os.geteuid() == 0:  # become somebody who may read everything and write nothing of others
        if not shutil.which("setpriv"):
            pytest.skip("no setpriv here")
        right = "+dac_read_search"
        start = ["setpriv", f"--reuid={NO_USER}", f"--regid={NO_USER}", "--clear-groups"]
        start += [f"--inh-caps={right}", f"--ambient-caps={right}", "--"]
    own = tmp_path / "own"
    own.mkdir(mode=0o777)
    own.chmod(0o777)
    for path in [site, *site.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        told = works(
            site,
            own,
            start=start,
            HOME=None if start else str(site),
            **dict.fromkeys(("QLLK_CACHE", "QLLK_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"), None),
        )
    finally:
        for path in [site, *site.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o200)
    for variable in ("QLLK_CACHE", "QLLK_HOME"):
        assert told.count(f"Set {variable} to a folder of your own") == 1


# ---------------------------------------------------------------- lessons


@pytest.mark.long
@pytest.mark.timeout(600)
def test_qllk_test_passes_in_a_wheel(site, tmp_path):
    done = run(["-m", "qllk", "test"], site, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line[:3] for line in done.stdout.splitlines()] == ["ok "] * 5
    assert not {path.name for path in tmp_path.iterdir()} - {"cache"}


@pytest.mark.long
def test_qllk_lab_serves_the_lessons_of_a_wheel_to_this_machine_only(site, tmp_path):
    places = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    env = os.environ | places | {"PYTHONPATH": str(site), "QLLK_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "qllk", "lab", "--no-browser", "--allow-root"]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log)
    try:
        facts = wait_for_server(tmp_path / "RUNTIME", server, tmp_path / "log")
        assert facts["hostname"] == "127.0.0.1"
        assert facts["token"]
        address = f"{facts['url']}api/contents?token={facts['token']}"
        listed = json.loads(urllib.request.urlopen(address, timeout=60).read())["content"]
    finally:
        server.terminate()
        server.wait(60)
    assert {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} <= {
        row["name"] for row in listed
    }
    assert (tmp_path / "home") in Path(facts["root_dir"]).parents


def wait_for_server(folder, server, log):
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        for path in folder.glob("jpserver-*.json"):
            facts = json.loads(path.read_text() or "{}")
            if facts:
                return facts
        assert server.poll() is None, log.read_text()
        time.sleep(0.5)
    raise TimeoutError(log.read_text())
