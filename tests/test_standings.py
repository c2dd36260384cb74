"""The standings: the best first, each with its size and batch, and charts against the control."""

import pytest

from qllk.probes.evaluate import LN2
from qllk.study import standings


def row(entry, nats, **others):
    """A row as `race.run_race` returns it."""
    return {
        **{"entry": entry, "seconds": 100, "family": "decoder", "parameters": 1234},
        **{"d_model": 96, "layers": 2, "lr": 0.008, "batch": 1, "window": 2048},
        **{"judged_window": 1024, "mean_nats": nats, "spread": 0.002, "bits_per_byte": nats / LN2},
        **{"bytes_per_second": 25_000.4, "curve": [[1.0, nats]], "by_position": [nats] * 16},
        **{"window_nats": {"1024": nats, "4096": nats - 0.25}},
        **{"stream_nats": nats - 0.5, "stream_longest": None},
        **others,
    }


def cells(row):
    """The cells of a row of the table by the names of the columns."""
    head, _, line = standings.format_rows([row]).splitlines()
    split = ([cell.strip() for cell in text.strip("|").split("|")] for text in (head, line))
    return dict(zip(*split, strict=True))


def test_the_table_has_the_best_first_within_a_budget():
    rows = [row("slow", 1.5), row("later", 1.0, seconds=900), row("quick", 1.25)]
    head, rule, *lines = standings.format_rows(rows).splitlines()
    assert head.startswith("| seconds | model |")
    assert [line.split(" | ")[1] for line in lines] == ["quick", "slow", "later"]
    assert len({line.count("|") for line in (head, rule, *lines)}) == 1


def test_the_table_shows_what_the_search_chose_and_every_judgement():
    assert cells(row("qllk-3", 1.25)) == {
        **{"seconds": "100", "model": "qllk-3", "parameters": "1,234"},
        **{"width": "96", "layers": "2", "lr": "0.008", "batch": "1x2048"},
        **{"windows of 1,024": "1.2500", "seeds' spread": "0.0020", "bits per byte": "1.8034"},
        **{"windows of 4,096": "1.0000", "stream": "0.7500", "bytes/s": "25,000"},
    }


def test_the_table_says_where_a_model_was_judged_in_less():
    cut = cells(row("gpt", 1.25, stream_longest=4096))
    assert cut["stream"] == "0.7500 (4,096)"
    short = row("gpt2-nano", 1.25, judged_window=80, window_nats={"1024": None, "4096": None})
    assert cells(short)["windows of 1,024"] == "1.2500 (80)"
    assert cells(short)["windows of 4,096"] == "–"
    assert cells(row("some", 1.25, stream_nats=None))["stream"] == "–"


def test_the_table_says_which_ids_a_model_is_asked_for():
    assert cells(row("bert-nano", 1.0, family="encoder"))["model"] == "bert-nano, hidden ids"
    assert cells(row("t5-nano", 1.0, family="encoder-decoder"))["model"] == "t5-nano, lost ids"


def test_levels_whose_labels_would_overlap_share_one():
    levels = {"uniform": 8.0, "bz2": 1.74, "lzma": 1.73}
    assert standings._merge_levels(levels) == {"lzma, bz2": 1.73, "uniform": 8.0}


def test_curves_are_drawn_in_bits_with_the_baselines_that_they_pass():
    curves = {"qllk-2": [(1.0, 4.0 * LN2), (2.0, 2.0 * LN2)]}
    chart = standings.draw_curves(curves, {"uniform": 8.0, "bz2": 1.74, "lzma": 1.73})
    assert chart.lines == {"qllk-2": [(1.0, pytest.approx(4.0)), (2.0, pytest.approx(2.0))]}
    assert chart.levels == {"lzma, bz2": 1.73}
    assert standings.draw_curves({"not yet validated": []}, {"uniform": 8.0}).levels == {}


@pytest.mark.parametrize(
    ("others", "control"),
    [
        (["qllk-2-local", "qllk-3 without recall"], "qllk-3 without recall"),
        (["qllk-2-local"], "qllk-2-local"),
        ([], "qllk-3"),  # without a control, the first row
    ],
)
def test_a_race_is_drawn_against_its_control(others, control):
    rows = [row("qllk-3", 1.0), *(row(name, 1.5) for name in others)]
    ((curves, gaps),) = standings.draw_race(rows, {})
    assert curves.lines.keys() == gaps.lines.keys() == {"qllk-3", *others}
    assert gaps.y == f"bits per byte above {control}"
    assert {gap for _, gap in gaps.lines[control]} == {0.0}
    assert [x for x, _ in gaps.lines["qllk-3"]] == [64 * (i + 0.5) for i in range(16)]
    expected = -0.5 / LN2 if others else 0.0
    assert gaps.lines["qllk-3"][0][1] == pytest.approx(expected)
