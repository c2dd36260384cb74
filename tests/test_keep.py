"""Functions that passed are kept as source that stands alone."""

import itertools
import linecache
import os
from pathlib import Path

import pytest
import torch
from helpers import facts

from qllk.lab.keep import keep, keep_weights, kept, kept_weights, portable_source

_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QLLK_HOME", str(tmp_path))
    return tmp_path


def notebook(*cells):
    """The names that cells define, run as a notebook runs them."""
    names = {"__name__": "__main__"}
    for source in cells:
        path = f"<cell {next(_NUMBERS)}>"
        linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
        exec(compile(source, path, "exec"), names)
    return names


def test_a_function_is_kept_with_all_that_it_needs_and_read_again(home):
    names = notebook(
        "import math\nimport torch.nn.functional as F\nfrom torch import nn",
        "SCALE = (2, 0.5)\nunused = nn.Linear(1, 1)",
        "def half(x):\n    return x * SCALE[1]",
        "def my_total(x, times=SCALE[0], kind: nn.Module = None):\n"
        "    if times > 2:\n        return my_total(x, 2)\n"
        "    return sum(half(F.relu(y)) * times for y in x) * math.pi",
    )
    keep("cumsum.total", names["my_total"])
    text = (home / "mine" / "cumsum.py").read_text()
    assert "unused" not in text
    found = kept("cumsum.total")
    assert found is not names["my_total"]
    x = torch.tensor([1.0, -2.0, 3.0])
    assert found(x, 5) == names["my_total"](x, 5) == pytest.approx(4 * 3.14159265)


def test_each_exercise_of_a_lesson_has_its_section():
    names = notebook("def a(x):\n    return x + 1", "def b(x):\n    return x + 2")
    assert kept("cumsum.first") is None
    keep("cumsum.first", names["a"])
    keep("cumsum.second", names["b"])
    keep("cumsum.first", notebook("def a(x):\n    return x + 3")["a"])
    assert (kept("cumsum.first")(0), kept("cumsum.second")(0)) == (3, 2)
    assert kept("cumsum.third") is None


def test_a_kept_function_can_be_used_by_another_one_under_another_name(home):
    keep("cumsum.first", notebook("def my_first(x):\n    return x + 1")["my_first"])
    names = notebook("def my_second(x):\n    return first(first(x))")
    names["first"] = kept("cumsum.first")
    keep("growth.second", names["my_second"])
    (home / "mine" / "cumsum.py").unlink()
    assert kept("growth.second")(1) == 3


def test_a_class_and_the_newest_of_two_definitions_are_kept():
    cells = "class Block:\n    def size(self):\n        return {}"
    names = notebook(cells.format(1), cells.format(2), "def make():\n    return Block()")
    keep("assembly.block", names["make"])
    assert kept("assembly.block")().size() == 2
    keep("assembly.block", names["Block"])
    assert kept("assembly.block")().size() == 2


def test_a_function_of_the_library_is_imported():
    names = notebook(
        "from qllk.model.kernels import cumsum_kernel as fold", "def f():\n    return fold"
    )
    assert "from qllk.model.kernels import cumsum_kernel as fold" in portable_source(names["f"])


MIXER = "class MyMixer:\n    def size(self):\n        return {}"
BLOCK = "import math\n\nclass MyBlock:\n    def size(self):\n        return Mixer().size() + {}"
MODEL = "import math\n\ndef my_model():\n    return MyBlock().size() * math.floor({})"


def keep_model(mixer=1, block=10, model=100):
    """Keep three exercises as a lesson does: each uses the ones before, under another name."""
    names = notebook(
        MIXER.format(mixer), "Mixer = MyMixer", BLOCK.format(block), MODEL.format(model)
    )
    for exercise, name in {"mixer": "MyMixer", "block": "MyBlock", "model": "my_model"}.items():
        keep(f"assembly.{exercise}", names[name])


def test_a_lesson_whose_answers_use_each_other_is_kept_with_one_copy_of_each(home):
    keep_model()
    keep_model()
    text = (home / "mine" / "assembly.py").read_text()
    for part in ("class MyMixer", "class MyBlock", "def my_model", "Mixer = MyMixer"):
        assert text.count(part) == 1
    assert text.count("import math") == 1
    assert kept("assembly.model")() == 1100
    assert kept("assembly.block")().size() == 11


def test_an_answer_that_is_replaced_takes_nothing_from_the_answers_that_used_it(home):
    keep_model()
    keep("assembly.mixer", notebook("class Other:\n    def size(self):\n        return 5")["Other"])
    assert kept("assembly.mixer")().size() == 5
    assert kept("assembly.model")() == 1100
    keep("assembly.mixer", notebook(MIXER.format(7))["MyMixer"])
    assert kept("assembly.mixer")().size() == 7
    assert kept("assembly.model")() == 1100
    keep_model(mixer=2)
    assert kept("assembly.model")() == 1200
    assert (home / "mine" / "assembly.py").read_text().count("class MyMixer") == 1


def test_a_section_that_was_edited_keeps_its_comments_and_its_line_numbers(home):
    keep_model()
    path = home / "mine" / "assembly.py"
    path.write_text(
        path.read_text()
        .replace("def my_model", "# my own remark\ndef my_model")
        .replace("100", "0")
    )
    keep("assembly.other", notebook("def other():\n    return 1")["other"])
    lines = path.read_text().splitlines()
    assert "# my own remark" in lines
    line = kept("assembly.model").__code__.co_firstlineno
    assert lines[line - 1] == "def my_model():"


def test_a_section_that_no_longer_runs_stays_as_it_is_and_harms_no_other(home):
    keep_model()
    path = home / "mine" / "assembly.py"
    path.write_text(path.read_text().replace("math.floor(", "math.floor(("))
    keep("assembly.mixer", notebook(MIXER.format(7))["MyMixer"])
    keep("assembly.other", notebook("def other():\n    return 1")["other"])
    assert "math.floor((" in path.read_text()
    assert kept("assembly.block")().size() == 11
    assert kept("assembly.other")() == 1
    with pytest.raises(SyntaxError):
        kept("assembly.model")


def test_a_helper_named_like_a_builtin_stays_with_the_answer_that_has_it():
    keep("cumsum.first", notebook("def sum(x):\n    return 0", "def f(x):\n    return sum(x)")["f"])
    names = notebook("import math", "def g(x):\n    return sum(x)")
    keep("cumsum.second", names["g"])
    assert (kept("cumsum.first")([1]), kept("cumsum.second")([1, 2])) == (0, 3)


def test_the_version_that_a_function_uses_is_kept_not_the_last_one_of_its_name(home):
    keep_model(mixer=1)
    keep("assembly.mixer", notebook(MIXER.format(7))["MyMixer"])
    block = kept("assembly.block")
    names = notebook("def count():\n    return Block().size()")
    names["Block"] = block
    keep("assembly.count", names["count"])
    assert kept("assembly.count")() == 11


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"\xff"), os.mkfifo, Path.mkdir])
def test_a_file_of_functions_that_cannot_be_read_is_named_and_left_alone(home, damage):
    path = home / "mine" / "cumsum.py"
    path.parent.mkdir()
    damage(path)
    before = facts(path)
    with pytest.raises(ValueError, match=r"codec|cumsum\.py is not a file"):
        keep("cumsum.f", notebook("def f():\n    return 1")["f"])
    with pytest.raises(ValueError, match=r"codec|cumsum\.py is not a file"):
        kept("cumsum.f")
    assert facts(path) == before


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["f = lambda x: x"], "is not at the top of a cell"),
        (
            ["def outer():\n    def f(x):\n        return x\n    return f", "f = outer()"],
            "top of a",
        ),
        (
            ["import torch\nw = torch.ones(3)", "def f(x):\n    return x * w"],
            "'w', a Tensor of the",
        ),
        (["from functools import partial\nf = partial(max, 1)"], "write it with `def`"),
    ],
)
def test_what_cannot_stand_alone_is_refused_in_words(cells, said):
    with pytest.raises(ValueError, match=said):
        portable_source(notebook(*cells)["f"])


def test_a_local_name_is_not_taken_for_a_value_of_the_notebook():
    cells = ("import torch\nx = torch.ones(3)\nshape = x", "def f(x):\n    return x.shape")
    assert "import torch" not in portable_source(notebook(*cells)["f"])


def test_two_things_of_one_name_are_refused():
    first = notebook("def helper(x):\n    return x", "def f(x):\n    return helper(x)")
    names = notebook("def helper(x):\n    return -x", "def g(x):\n    return helper(f(x))")
    names["f"] = first["f"]
    with pytest.raises(ValueError, match="two different things called 'helper'"):
        portable_source(names["g"])


# ---------------------------------------------------------------- weights


def test_weights_are_kept_under_the_names_of_the_class_and_the_newest_win(home):
    assert kept_weights() is None
    keep_weights(torch.nn.Linear(2, 3))
    model = torch.nn.Linear(3, 2).bfloat16()
    keep_weights(model)
    found = kept_weights()
    assert found.keys() == {"bias", "weight"}
    assert all(torch.equal(found[name], w) for name, w in model.state_dict().items())
    assert [path.name for path in (home / "mine").iterdir()] == ["model.safetensors"]


def test_damaged_weights_are_named_with_their_cure(home):
    keep_weights(torch.nn.Linear(2, 3))
    path = home / "mine" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged .*; delete it to start"):
        kept_weights()


def test_weights_that_cannot_be_written_stop_nothing(home, capsys):
    (home / "mine").write_text("a file is in the way")
    keep_weights(torch.nn.Linear(2, 3))
    assert "(not saved: " in capsys.readouterr().out
