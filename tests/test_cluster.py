"""The costs of a step on several processes: on paper, and as measured."""

import sys

import pytest
from test_parallel import answer

from qllk.study.cluster import cluster_cost, format_table

GLOO = {"ddp": 1.0, "fsdp": 4 / 3}  # its reduce-scatter is an all-reduce


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net/dev")
@pytest.mark.parametrize("world", [2, 4])
def test_memory_and_bytes_sent_are_those_that_processes_take(world):
    for engine, (parameters, held, sent) in answer(world, "costs", "ddp", "fsdp").items():
        # Between two steps no layer is gathered, so as many layers as you like.
        cost = cluster_cost(parameters, 10**9, engine, world)
        assert held == pytest.approx(cost.memory_bytes, rel=0.01), engine
        assert sent == pytest.approx(GLOO[engine] * cost.sent_bytes, rel=0.1), engine


def test_the_formulas_at_numbers_worked_out_by_hand():
    ddp, fsdp = (cluster_cost(1000, 10, engine, 4) for engine in ("ddp", "fsdp"))
    assert ddp == (16_000, 6_000)  # 2 * 3/4 * 4,000
    assert fsdp == (4_800, 9_000)  # 16,000 / 4 + 8,000 / 10, and 3 * 3/4 * 4,000
    # 6 * 1000 * 10 operations at 600 per second, 6,000 bytes at 200 per second
    assert ddp.seconds(1000, 10, flops=600, link=200) == (100, 130)
    assert ddp.seconds(1000, 1, flops=600, link=200) == (30, 40)


def test_one_process_sends_nothing_and_holds_everything():
    for engine in ("ddp", "fsdp"):
        assert cluster_cost(1000, 10, engine, 1) == (16_000, 0)


@pytest.mark.parametrize(
    ("engine", "world", "words"),
    [("tensor", 2, "unknown engine 'tensor'"), ("ddp", 0, "world must be a whole number above 0")],
)
def test_what_has_no_cost_is_refused(engine, world, words):
    with pytest.raises(ValueError, match=words):
        cluster_cost(1000, 10, engine, world)


def test_the_table_has_a_row_for_each_engine_and_number_of_gpus():
    lines = format_table((1, 8)).splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("| 8 | fsdp | 2.3 | 10.5 |")
