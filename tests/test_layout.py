"""The layout: imports run one way, none hides in a function, every module has its test file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qllk

ROOT = Path(qllk.__file__).parent
# What each wing may import besides itself. Model and text do not know each other.
BASE = {"checks", "files", "folders", "presets", "spec"}
MAY_IMPORT = {
    "checks": set(),
    "files": set(),
    "folders": {"files"},
    "spec": {"checks"},
    "presets": {"checks", "files", "spec"},
    "model": BASE,
    "text": BASE,
    "probes": BASE | {"model", "text"},
    "training": BASE | {"model", "text", "probes"},
    "study": BASE | {"model", "text", "probes", "training"},
    "lab": BASE | {"model", "text", "probes", "training", "study"},
    "doctor": BASE | {"text", "training", "study"},
    "selftest": BASE | {"model", "text", "training"},
    "__main__": {"doctor", "selftest"}
    | BASE
    | {"model", "text", "probes", "training", "study", "lab"},
}
# Inside a wing, a file imports only from the files before it.
ORDER = {
    "model": [
        "masks",
        "kernels",
        "addresses",
        "contexts",
        "positions",
        "layers",
        "inputs",
        "patching",
        "attention",
        "recurrent",
        "retention",
        "minimal",
        "mamba",
        "linformer",
        "wkv",
        "rwkv",
        "mixers",
        "register",
        "blocks",
        "families",
        "pretrained",
        "sample",
    ],
    "text": [
        *("prepare", "tokens", "tasks", "copies", "downloads", "corpora", "windows"),
        "objectives",
    ],
    "probes": ["measure", "evaluate", "baselines", "inside", "laws", "scores"],
    "training": [
        *("recipe", "devices", "float8", "optim", "parallel", "costs", "place", "previews"),
        *("questions", "snapshot", "trainer", "checkpoint", "finetune", "reports"),
    ],
    "study": [
        *("pool", "published", "by_hand", "axes", "figures", "plots", "entries", "race"),
        *("standings", "judge", "runs", "options", "console", "session", "bench", "experiments"),
        *("memory", "cluster"),
    ],
}
# Modules that are tested in the file of what they serve.
TESTED_ELSEWHERE = {
    "text/copies": "test_corpora",
    "text/downloads": "test_corpora",
    "model/masks": "test_kernels",
    "model/wkv": "test_kernels",
    "study/options": "test_main",
    "training/recipe": "test_trainer",
    "training/place": "test_trainer",
    "training/snapshot": "test_checkpoint",
}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")
WIDGETS = {"ipywidgets", "IPython", "anywidget"}


def imports(tree, package):
    """Every name that a parsed file of `package` imports, in full: "qllk.model.mixers.MIXERS"."""
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


def wing_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def wings(names):
    """The wings and top files among imported names, without what __init__ itself defines."""
    found = {name.split(".")[1] for name in names if name.startswith("qllk.")}
    return found - {"__version__"}


def siblings(names, wing):
    """The files of a wing among imported names."""
    prefix = f"qllk.{wing}."
    return {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}


each_file = pytest.mark.parametrize(
    "path", FILES, ids=lambda path: path.relative_to(ROOT).with_suffix("").as_posix()
)
# The lessons' tests are named after the lessons that they belong to.
each_module = pytest.mark.parametrize(
    "module",
    [
        path.relative_to(ROOT).with_suffix("").as_posix()
        for path in FILES
        if "lessons" not in path.parts
    ],
)


@each_file
def test_imports_run_one_way(path):
    wing = wing_of(path)
    assert wings(imported(path)) - {wing} <= MAY_IMPORT[wing]
    assert "qllk" not in imported(path), "import the module, not the whole package"


@each_file
def test_inside_a_wing_a_file_imports_only_from_files_before_it(path):
    wing = wing_of(path)
    if wing in ORDER:
        order = ORDER[wing]
        assert path.stem in order, f"add {path.name} to the order of {wing}"
        assert siblings(imported(path), wing) <= set(order[: order.index(path.stem)])


@each_file
def test_no_import_of_our_own_hides_in_a_function(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in top:
            assert not node.level
            assert not (node.module or "").startswith("qllk")
        if isinstance(node, ast.Name | ast.Attribute):
            assert getattr(node, "id", getattr(node, "attr", "")) != "import_module"


@each_file
def test_nothing_outside_the_lab_needs_a_notebook(path):
    if wing_of(path) != "lab":
        names = imported(path)
        assert "lab" not in wings(names) or path.stem == "__main__"  # the commands of learners
        assert not {name.split(".")[0] for name in names} & WIDGETS


def test_the_order_would_catch_a_file_that_reads_upwards():
    source = "from . import families\nfrom ..text import tokens\nfrom .kernels import causal_conv\n"
    names = set(imports(ast.parse(source), "qllk.model"))
    assert wings(names) - {"model"} == {"text"}
    assert "text" not in MAY_IMPORT["model"]
    assert siblings(names, "model") == {"families", "kernels"}
    assert wings(
        set(imports(ast.parse("from ...training.trainer import Trainer"), "qllk.lab.live"))
    ) == {"training"}


@each_module
def test_every_module_has_a_test_file_of_its_name(module):
    name = f"test_{Path(module).name.strip('_')}"
    expected = Path(__file__).with_name(f"{TESTED_ELSEWHERE.get(module, name)}.py")
    assert expected.exists(), f"{module} has no {expected.name}"


@pytest.mark.parametrize("name", ["spec", "presets", "checks", "files", "folders"])
def test_plain_data_needs_no_torch(name):
    code = (
        "import importlib, sys, types\n"
        "package = types.ModuleType('qllk')\n"  # instead of __init__, which imports everything
        f"package.__path__ = [{str(ROOT)!r}]\n"
        "sys.modules['qllk'] = package\n"
        f"importlib.import_module('qllk.{name}')\n"
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert run.returncode == 0, f"qllk.{name} imports torch"


def test_what_only_several_processes_need_is_not_imported_at_the_start():
    code = "import qllk, sys; sys.exit('torch.distributed.fsdp' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert run.returncode == 0
