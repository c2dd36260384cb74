"""What a cell calls: same, show, digits, sized, tiny."""

import pytest
import torch

from qllk.lab import TEXT, digits, same, show, sized, tiny
from qllk.model import masks


def said(capsys):
    return capsys.readouterr().out.strip()


def test_same_says_so_or_raises_with_the_first_place(capsys):
    x = torch.arange(6.0).view(2, 3)
    same(x, x + 1e-12)
    same(2, 2.0)
    assert said(capsys).splitlines()[0] == "same: 2 x 3, no gap above 1e-09"
    y = x.clone()
    y[1, 2] = 9
    with pytest.raises(AssertionError, match=r"first at \(1, 2\): 5 and 9"):
        same(x, y)
    with pytest.raises(AssertionError, match=r"shapes differ: \(2, 3\) and \(3, 2\)"):
        same(x, x.t())
    with pytest.raises(AssertionError, match="differ"):
        same(x * float("nan"), x * float("nan"))


def test_show_prints_the_real_source(capsys):
    show(masks.causal_mask)
    text = said(capsys)
    assert text.startswith("# qllk/model/masks.py\ndef causal_mask(")
    assert "torch.arange(N - T, N" in text


def test_digits_round_and_know_no_minus_zero(capsys):
    digits(torch.tensor([[1.23456, -0.00001], [10.0, 2.0]]))
    digits(3.14159, places=1)
    assert capsys.readouterr().out == "  1.235   0.000\n 10.000   2.000\n  3.1\n"


@pytest.mark.parametrize(("value", "got"), [("1", "small"), ("0", "full"), ("", "full")])
def test_the_size_is_chosen_by_the_environment(monkeypatch, value, got):
    monkeypatch.setenv("QLLK_FAST", value)
    assert sized("full", "small") == got


def test_the_tiny_string_is_embedded_the_same_each_time():
    x, q, k = tiny(4, 0, "q", "k")
    assert x.shape == q.shape == (1, len(TEXT), 4)
    assert len(TEXT) == 16
    assert torch.equal(tiny(4, 0, "q", "k")[2], k)
    assert not torch.equal(q, k)
    assert torch.equal(x[0, 0], x[0, 3])  # both are an "a"
