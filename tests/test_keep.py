"""Functions that passed are kept as source that stands alone."""

import itertools
import linecache

import pytest
import torch

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
