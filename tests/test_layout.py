"""The reading order is real: a file imports only from files above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qllk

ROOT = Path(qllk.__file__).parent
ORDER = [
    *["spec", "presets"],
    *["kernels", "positions", "layers", "patching", "mixers", "models", "published"],
    *["tokens", "data", "objectives", "tasks", "measure", "evaluate", "by_hand"],
    *["devices", "float8", "optim", "probes", "recipe", "resume", "train"],
    *["checkpoint", "sample", "replies", "bench", "__main__"],
    "lab",
]
FILES = sorted(ROOT.glob("*.py"))
LAB = sorted(ROOT.glob("lab/**/*.py"))
WIDGETS = {"ipywidgets", "IPython", "anywidget"}


def imports(tree, package):
    """Every module that a parsed file of `package` imports, in full: "qllk.mixers", "torch.nn"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = [*(parents if node.level else []), *filter(None, [node.module])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def imported(path):
    package = ".".join(path.relative_to(ROOT.parent).parent.parts)
    return set(imports(ast.parse(path.read_text(encoding="utf-8")), package))


def own(names):
    """The files of the package among imported names; what __init__ itself defines is none."""
    found = {name.split(".")[1] for name in names if name.startswith("qllk.")}
    return found - {"__version__"}


def violations(name, names):
    """What the file `name` must not import."""
    allowed = set(ORDER[: ORDER.index(name)])
    return own(names) - allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_imports_only_from_files_above_it(path):
    if path.stem == "__init__":
        assert "lab" not in own(imported(path))
        return
    assert path.stem in ORDER, f"{path.name} has no place in the reading order; give it one here"
    assert not violations(path.stem, imported(path))
    assert "qllk" not in imported(path), "import the file that is meant, not the whole package"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_outside_the_lab_needs_a_notebook(path):
    names = imported(path)
    assert "lab" not in own(names)
    assert not {name.split(".")[0] for name in names} & WIDGETS


def test_lab_files_are_found_where_they_are():
    assert (ROOT / "lab").is_dir()
    assert all(path.is_relative_to(ROOT / "lab") for path in LAB)


def test_the_order_would_catch_a_file_that_reads_downwards():
    source = "import qllk.lab\nfrom . import kernels, models\nfrom .spec import Spec\n"
    names = set(imports(ast.parse(source), "qllk"))
    assert own(names) == {"lab", "kernels", "models", "spec"}
    assert violations("mixers", names) == {"lab", "models"}
    assert own(set(imports(ast.parse("from ..train import Trainer"), "qllk.lab"))) == {"train"}
    assert own(set(imports(ast.parse("from qllk import bench"), "qllk"))) == {"bench"}


@pytest.mark.parametrize("name", ["spec", "presets"])
def test_spec_and_presets_need_no_torch(name):
    code = (
        "import importlib, sys, types\n"
        "package = types.ModuleType('qllk')\n"  # stands in for __init__, which opens everything
        f"package.__path__ = [{str(ROOT)!r}]\n"
        "sys.modules['qllk'] = package\n"
        f"importlib.import_module('qllk.{name}')\n"
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert run.returncode == 0, f"qllk.{name} imports torch"
