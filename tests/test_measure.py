"""What claims are measured with: exponents, crossings, counted bytes and operations, seconds."""

import math

import pytest
import torch

from qllk.model import kernels
from qllk.probes import measure


def test_an_exponent_is_fitted_with_its_range():
    xs = [1, 2, 4, 8]
    grown = measure.fit_exponent(xs, [3 * x**2 for x in xs])
    assert grown == pytest.approx((2.0, 2.0, 2.0))
    uneven = measure.fit_exponent([1, 2, 4], [1, 2, 8])
    assert (uneven.low, uneven.high) == pytest.approx((1.0, 2.0))
    assert uneven.low < uneven.exponent < uneven.high
    assert str(uneven) == "1.50 (1.00 to 2.00 between neighbours)"


@pytest.mark.parametrize(
    ("xs", "ys"), [([1], [1]), ([1, 2], [1]), ([0, 1], [1, 2]), ([1, 2], [0, 1])]
)
def test_an_exponent_needs_two_points_above_zero(xs, ys):
    with pytest.raises(ValueError, match="at least two pairs of numbers above 0"):
        measure.fit_exponent(xs, ys)


def test_a_crossing_is_found_between_points():
    xs = [1, 10, 100]
    assert measure.crossover(xs, [1, 10, 100], [5, 5, 5]) == pytest.approx(5)
    assert measure.crossover(xs, [2, 3, 4], [1, 1, 1]) == 1
    assert measure.crossover(xs, [1, 1, 1], [2, 3, 4]) is None


def test_the_peak_counts_what_is_alive_at_once():
    def one_at_a_time():
        for _ in range(10):
            torch.ones(1000).sum()

    def all_together():
        return [torch.ones(1000) for _ in range(10)]

    assert measure.trace_memory(one_at_a_time).peak_bytes < 2 * 4000
    assert measure.trace_memory(all_together).peak_bytes == 10 * 4000


def test_views_and_inputs_cost_nothing():
    x = torch.ones(1000)
    assert measure.trace_memory(lambda: x.view(10, 100).t()[3:]) == (0, 0)
    assert measure.trace_memory(lambda: x.add_(1)) == (0, 0)
    assert measure.trace_memory(lambda: (x + 1).view(10, 100)) == (4000, 1000)


def test_a_table_grows_with_the_square_and_the_kernel_does_not():
    def grown(rule):
        lengths = [64, 128, 256]
        made = []
        for T in lengths:
            q, k, v = torch.ones(3, 1, 1, T, 8)
            made.append(measure.trace_memory(lambda q=q, k=k, v=v: rule(q, k, v)).peak_bytes)
        return measure.fit_exponent(lengths, made).exponent

    assert grown(kernels.softmax_attention) > 1.9
    assert grown(kernels.linear_attention) < 1.2


def test_the_backward_pass_is_counted_too():
    w = torch.ones(100, 100, requires_grad=True)
    x = torch.ones(1, 100)
    forward = measure.trace_memory(lambda: x @ w).numbers_made
    both = measure.trace_memory(lambda: (x @ w).sum().backward()).numbers_made
    assert forward == 100
    assert both >= 100 + 100 * 100


def test_saved_bytes_are_what_the_backward_pass_will_need():
    w = torch.nn.Parameter(torch.ones(100, 100))
    x = torch.ones(10, 100)
    assert measure.saved_bytes(lambda: x @ w) == 10 * 100 * 4  # the input, not the weight
    assert measure.saved_bytes(lambda: x @ w.t()) == 10 * 100 * 4
    assert measure.saved_bytes(lambda: (x @ w).exp()) == 2 * 10 * 100 * 4
    assert measure.saved_bytes(lambda: (x @ w) * (x @ w)) == 3 * 10 * 100 * 4  # x counts once
    assert measure.saved_bytes(lambda: x + x) == 0


def test_operations_count_a_multiply_and_an_add():
    assert measure.count_flops(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 2 * 3 * 5 * 7


def test_operations_look_inside_fused_attention():
    q, k, v = torch.zeros(3, 1, 2, 16, 4)
    assert measure.count_flops(lambda: kernels.causal_attention(q, k, v)) == 2 * 2 * (
        2 * 16 * 16 * 4
    )


def test_all_threads_are_given_back_even_after_an_error():
    before = torch.get_num_threads()
    seen = []

    def fails():
        with measure.single_thread():
            seen.append(torch.get_num_threads())
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        fails()
    assert seen == [1]
    assert torch.get_num_threads() == before


def test_seconds_are_a_median_after_a_warm_up():
    calls = []
    assert measure.median_seconds(lambda: calls.append(1), repeats=3) >= 0
    assert len(calls) == 4
    calls.clear()
    measure.median_seconds(lambda: calls.append(1), repeats=1, at_least=0.01)
    assert len(calls) > 4
    assert math.isfinite(measure.median_seconds(lambda: None))


def test_cpu_seconds_are_medians_of_calls_in_turns_after_a_warm_up(monkeypatch):
    now, calls, before = [0.0], [], torch.get_num_threads()
    monkeypatch.setattr(measure.time, "process_time", lambda: now[0])
    torch.set_num_threads(before + 1)

    def call(name, steps):
        assert torch.get_num_threads() == 1
        assert torch.is_inference_mode_enabled()
        calls.append(name)
        now[0] += next(steps)

    first, second = iter([90.0, 2.0, 9.0, 3.0]), iter([0.0, 5.0, 4.0, 90.0])
    try:
        found = measure.median_cpu_seconds(
            [lambda: call("a", first), lambda: call("b", second)], rounds=3
        )
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert found == [3.0, 5.0]
    assert "".join(calls) == "abababab"
