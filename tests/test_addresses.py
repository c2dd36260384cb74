"""Sums with an address: what each row holds, whatever the order of the addresses.

That each kernel equals its loop on random input is tested in test_kernels.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import same, vectors
from torch._subclasses.fake_tensor import FakeTensorMode

from qllk.model import addresses, kernels
from qllk.probes.measure import trace_memory

T, A = 23, 24  # enough addresses for a different one at each step


def random(B):
    return torch.randint(-1, 4, (B, T)), torch.randint(-1, 4, (B, T))


def the_next(B):
    """Each step writes to an address and reads the next one, as a model does."""
    address = torch.randint(-1, 4, (B, T + 1))
    return address[:, 1:], address[:, :-1]


def all_equal(B):
    return torch.full((B, T), 3), torch.full((B, T), 3)


def all_different(B):
    read, write = (torch.stack([torch.randperm(A)[:T] for _ in range(B)]) for _ in range(2))
    return read, write


def one_at_both_ends(B):
    read, write = all_different(B)
    write[:, -1] = read[:, 5] = read[:, -1] = write[:, 0]
    return read, write


def none(B):
    return torch.full((B, T), -1), torch.full((B, T), -1)


KINDS = [random, the_next, all_equal, all_different, one_at_both_ends, none]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
each_batch = pytest.mark.parametrize("B", [1, 5])


def given(kernel, B):
    """Random values and a random state for a kernel: the last two of its arguments."""
    if kernel == "addressed_runs":
        return torch.randint(3, (B, T)), torch.randint(3, (B, A, 5)) * torch.tensor([0, 1, 1, 1, 1])
    return vectors(B, T, 2).requires_grad_(), vectors(B, A, 2).requires_grad_()


CALLS = {
    "sum": ("addressed_sum", {}),
    "sum, decaying": ("addressed_sum", {"log_decay": -0.3}),
    "last": ("addressed_last", {}),
    "runs": ("addressed_runs", {}),
}
each_call = pytest.mark.parametrize(("kernel", "options"), CALLS.values(), ids=CALLS)


def by_dictionary(step, read, write, v, S):
    """The same with a dictionary for each row of the batch, whose entries `step` replaces."""
    outputs, states = [], []
    for b in range(len(S)):
        memory = dict(enumerate(S[b]))
        memory[-1] = torch.zeros_like(S[b, 0])
        for t in range(v.shape[1]):
            if write[b, t] >= 0:
                memory[write[b, t].item()] = step(memory[write[b, t].item()], v[b, t])
            outputs.append(memory[read[b, t].item()])
        states.append(torch.stack([memory[a] for a in range(S.shape[1])]))
    return torch.stack(outputs).unflatten(0, v.shape[:2]), torch.stack(states)


def one_hot(address):
    """(B,T) -> (B,1,T,A), as the queries or the keys of one head; zeros for -1."""
    return F.one_hot(address + 1, A + 1)[:, None, :, 1:].double()


def pull(outputs, *wanted):
    """The gradients of a function of all outputs, in which each number counts differently."""
    total = sum((y.sin() * torch.arange(y.numel()).view_as(y)).sum() for y in outputs)
    return torch.autograd.grad(total, wanted, materialize_grads=True)


# ---------------------------------------------------------------- against other definitions


@each_batch
@each_kind
@each_call
def test_outputs_state_and_gradients_equal_those_of_the_loop(kernel, options, kind, B):
    (read, write), (v, S) = kind(B), given(kernel, B)
    fast = getattr(addresses, kernel)(read, write, v, S, **options)
    slow = getattr(addresses, f"{kernel}_loop")(read, write, v, S, **options)
    same(fast, slow)
    if v.requires_grad:
        same(pull(fast, v, S), pull(slow, v, S))


@each_batch
@each_kind
@pytest.mark.parametrize("log_decay", [0.0, -0.3])
def test_a_sum_equals_a_dictionary_of_sums(kind, B, log_decay):
    (read, write), (v, S) = kind(B), given("addressed_sum", B)
    fast = addresses.addressed_sum(read, write, v, S, log_decay)
    same(fast, by_dictionary(lambda row, x: math.exp(log_decay) * row + x, read, write, v, S))


@each_batch
@each_kind
def test_a_sum_is_linear_attention_with_one_hot_queries_and_keys(kind, B):
    (read, write), (v, S) = kind(B), given("addressed_sum", B)
    fast = addresses.addressed_sum(read, write, v, S)
    o, after = kernels.linear_attention(one_hot(read), one_hot(write), v[:, None], S=S[:, None])
    same(fast, (o[:, 0], after[:, 0]))


@each_batch
@each_kind
def test_the_last_write_equals_a_dictionary(kind, B):
    (read, write), (v, S) = kind(B), given("addressed_last", B)
    fast = addresses.addressed_last(read, write, v, S)
    same(fast, by_dictionary(lambda row, x: x, read, write, v, S), atol=0)


@each_batch
@each_kind
def test_the_last_write_is_the_delta_rule_with_one_hot_keys_and_full_strength(kind, B):
    (read, write), (v, S) = kind(B), given("addressed_last", B)
    fast = addresses.addressed_last(read, write, v, S)
    o, after = kernels.delta_rule(
        one_hot(read), one_hot(write), v[:, None], torch.ones(B, 1, T, 1), S=S[:, None]
    )
    same(fast, (o[:, 0], after[:, 0]))


def row_of(history):
    """The row of an address from all that was ever written to it."""
    runs = [(x, len(list(group))) for x, group in itertools.groupby(history)]
    last, run = runs[-1] if runs else (0, 0)
    other = runs[-2][0] if len(runs) > 1 else 0
    return [last, other, min(run, 255), min(len(history), 255)]


@each_batch
@each_kind
def test_runs_tell_the_history_of_each_address(kind, B):
    read, write = kind(B)
    x = torch.randint(2, (B, T))  # few, so that they repeat
    y, S = addresses.addressed_runs(read, write, x, torch.zeros(B, A, 5, dtype=torch.uint8))
    for b in range(B):
        history = {a: [] for a in range(-1, A)}
        for t in range(T):
            if write[b, t] >= 0:
                history[write[b, t].item()].append(x[b, t].item())
            assert y[b, t].tolist() == row_of(history[read[b, t].item()])
        assert S[b].tolist() == [[0, *row_of(history[a])] for a in range(A)]


@each_batch
@each_kind
@each_call
def test_pieces_with_a_carried_state_equal_the_whole(kernel, options, kind, B):
    (read, write), (v, S) = kind(B), given(kernel, B)
    whole = getattr(addresses, kernel)(read, write, v, S, **options)
    outputs = []
    for piece in zip(*(x.split([1, 9, 2, 1, 10], dim=1) for x in (read, write, v)), strict=True):
        y, S = getattr(addresses, kernel)(*piece, S, **options)
        outputs.append(y)
    same((torch.cat(outputs, dim=1), S), whole)


def test_a_sum_over_several_chunks_equals_the_loop():
    read, write = (torch.randint(-1, 3, (2, 300)) for _ in range(2))
    write[0] = 2  # a row that goes on through all chunks
    v, S = vectors(2, 300, 2), vectors(2, 3, 2)
    slow = addresses.addressed_sum_loop(read, write, v, S, -0.01)
    same(addresses.addressed_sum(read, write, v, S, -0.01), slow)


# ---------------------------------------------------------------- by hand


def column(*numbers):
    """One row of the batch, values of width one: (1,T,1)."""
    return torch.tensor(numbers, dtype=torch.float64)[None, :, None]


READ, WRITE = torch.tensor([[0, 1, 0, -1, 1]]), torch.tensor([[0, 0, 1, 0, -1]])


def test_a_sum_by_hand_reads_what_its_own_step_wrote():
    y, S = addresses.addressed_sum(READ, WRITE, column(1, 2, 4, 8, 16), column(100, 200))
    same(y, column(101, 200, 103, 0, 204))
    same(S, column(111, 204))


def test_a_sum_by_hand_fades_when_its_row_is_written_and_not_with_time():
    half = math.log(0.5)
    y, S = addresses.addressed_sum(READ, WRITE, column(1, 2, 4, 8, 16), column(8, 32), half)
    same(y, column(5, 32, 4.5, 0, 20))
    same(S, column(10.25, 20))


def test_the_last_write_by_hand():
    y, S = addresses.addressed_last(READ, WRITE, column(1, 2, 4, 8, 16), column(100, 200))
    same(y, column(1, 200, 2, 0, 4))
    same(S, column(8, 4))


def test_runs_by_hand():
    x, here = torch.tensor([[7, 7, 9, 9, 9, 7]]), torch.zeros(1, 6, dtype=torch.int64)
    y, S = addresses.addressed_runs(here, here, x, torch.zeros(1, 1, 5, dtype=torch.uint8))
    assert y[0].tolist() == [
        [7, 0, 1, 1],
        [7, 0, 2, 2],
        [9, 7, 1, 3],
        [9, 7, 2, 4],
        [9, 7, 3, 5],
        [7, 9, 1, 6],
    ]
    assert S.tolist() == [[[0, 7, 9, 1, 6]]]


@each_batch
def test_a_row_belongs_to_the_address_that_wrote_last(B):
    """Four owners to a row, against a dictionary that keeps the latest writer's history."""
    owners, rows = 4, 3
    read, write = (torch.randint(-1, rows * owners, (B, T)) for _ in range(2))
    x = torch.randint(2, (B, T))
    S = torch.zeros(B, rows, 5, dtype=torch.uint8)
    y, S = addresses.addressed_runs(read, write, x, S, owners)
    for b in range(B):
        holder, history = {}, {}
        for t in range(T):
            to, at = write[b, t].item(), read[b, t].item()
            if to >= 0:
                if holder.get(to // owners) != to:
                    history[to // owners] = []
                holder[to // owners] = to
                history[to // owners].append(x[b, t].item())
            mine = at >= 0 and holder.get(at // owners) == at
            assert y[b, t].tolist() == row_of(history[at // owners] if mine else [])


def test_a_run_of_zeros_differs_from_a_row_never_written():
    here = torch.zeros(1, 1, dtype=torch.int64)
    y, _ = addresses.addressed_runs(here, here, here, torch.zeros(1, 1, 5, dtype=torch.uint8))
    assert y.tolist() == [[[0, 0, 1, 1]]]


def test_visits_by_hand():
    visits = addresses.sort_visits(READ, WRITE)
    assert visits.order.tolist() == [[4, 0, 1, 3, 2]]
    assert visits.row.tolist() == [[-1, 0, 0, 0, 1]]
    assert visits.first.tolist() == [[0, 1, 1, 1, 4]]
    assert visits.seen.tolist() == [[True, False, True, False, True]]
    assert visits.found[visits.seen].tolist() == [1, 2, 4]


def test_the_mean_is_the_quotient_of_a_sum_and_a_count():
    (read, write), v, S = the_next(3), vectors(3, T, 2), torch.zeros(3, A, 1).double()
    sums, _ = addresses.addressed_sum(read, write, v, S.expand(3, A, 2))
    counts, _ = addresses.addressed_sum(read, write, torch.ones(3, T, 1), S)
    for b in range(3):
        for t in range(T):
            written = v[b, : t + 1][write[b, : t + 1] == read[b, t]]
            if len(written) and read[b, t] >= 0:
                same(sums[b, t] / counts[b, t], written.mean(dim=0))
            else:
                assert counts[b, t] == 0


# ---------------------------------------------------------------- states, precision, devices


@each_call
def test_the_state_passed_in_stays_valid(kernel, options):
    (read, write), (v, S) = random(5), given(kernel, 5)
    before = S.detach().clone()
    _, after = getattr(addresses, kernel)(read, write, v, S, **options)
    assert torch.equal(S, before)
    after.detach().zero_()
    assert torch.equal(S, before)


def test_the_gradient_reaches_a_state_through_the_steps_that_read_it():
    v, S = vectors(1, 5, 1), vectors(1, 3, 1).requires_grad_()

    def reached(x):
        return torch.autograd.grad(x.sum(), S, retain_graph=True)[0]

    y, after = addresses.addressed_sum(READ, WRITE, v, S, math.log(0.5))
    same(reached(y[:, 2]), column(0.25, 0, 0))
    same(reached(after), column(0.125, 0.5, 1))
    y, after = addresses.addressed_last(READ, WRITE, v, S)
    same(reached(y), column(0, 1, 0))
    same(reached(after), column(0, 0, 1))


@pytest.mark.parametrize("rows", [1, 3])
def test_single_precision_is_enough_for_a_million_steps(rows):
    address = torch.randint(rows, (1, 1_000_001))
    read, write = address[:, 1:], address[:, :-1]
    v, S = torch.rand(1, 1_000_000, 1), torch.zeros(1, rows, 1)
    single, _ = addresses.addressed_sum(read, write, v, S)
    double, _ = addresses.addressed_sum(read, write, v.double(), S.double())
    error = (single - double).abs() / double.clamp(min=0.1)
    assert error.max() < 1e-5


def test_a_small_row_keeps_its_precision_beside_a_large_one():
    write = torch.tensor([[0, 1]]).repeat(1, 1000)
    v = torch.tensor([1e8, 1e-3]).repeat(1000)[None, :, None]
    y, S = addresses.addressed_sum(write, write, v, torch.zeros(1, 2, 1))
    torch.testing.assert_close(S[0, 1], torch.tensor([1.0]), rtol=1e-5, atol=0)
    torch.testing.assert_close(y[0, 1::2].flatten(), torch.arange(1, 1001) / 1000)


def test_a_sum_adds_half_precision_in_single():
    here, ones = torch.zeros(1, 1000, dtype=torch.int64), torch.ones(1, 1000, 1).bfloat16()
    assert ones[0, 0] + 256 == 256  # where a half-precision sum would stop
    y, S = addresses.addressed_sum(here, here, ones, torch.zeros(1, 1, 1).bfloat16())
    assert y.dtype == S.dtype == torch.float32
    assert S.item() == 1000


def test_a_sum_is_the_same_inside_an_autocast():
    (read, write), v, S = random(2), torch.randn(2, T, 3), torch.randn(2, A, 3)
    outside = addresses.addressed_sum(read, write, v, S)
    with torch.autocast("cpu", torch.bfloat16):
        same(addresses.addressed_sum(read, write, v, S), outside, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_the_last_write_keeps_the_dtype_of_the_state(dtype):
    (read, write), v = random(2), torch.randint(256, (2, T, 3)).bfloat16()
    S = torch.randint(256, (2, A, 3)).to(dtype)
    y, after = addresses.addressed_last(read, write, v, S)
    assert y.dtype == after.dtype == dtype
    same((y, after), addresses.addressed_last_loop(read, write, v, S), atol=0)


def test_runs_and_counts_stop_at_255_in_one_pass_and_in_pieces():
    here, S = torch.zeros(1, 700, dtype=torch.int64), torch.zeros(1, 1, 5, dtype=torch.uint8)
    x = torch.tensor([[5] * 100 + [6] * 300 + [7] * 300])
    whole, _ = addresses.addressed_runs(here, here, x, S)
    assert whole[0, 354].tolist() == [6, 5, 255, 255]
    assert whole[0, 399].tolist() == [6, 5, 255, 255]
    assert whole[0, 400].tolist() == [7, 6, 1, 255]
    assert whole[0, 699].tolist() == [7, 6, 255, 255]
    pieces = []
    for piece in x.split([3, 297, 1, 99, 300], dim=1):
        y, S = addresses.addressed_runs(
            here[:, : piece.shape[1]], here[:, : piece.shape[1]], piece, S
        )
        pieces.append(y)
    assert torch.equal(torch.cat(pieces, dim=1), whole)


def shapes(kernel, options):
    """The shapes of what a kernel returns, on the current device."""
    here = torch.zeros(2, 100, dtype=torch.int64)
    v, width = (here, 5) if kernel == "addressed_runs" else (torch.zeros(2, 100, 3), 3)
    y, S = getattr(addresses, kernel)(here, here, v, torch.zeros(2, 9, width).to(v), **options)
    return [(tuple(x.shape), x.dtype) for x in (y, S)]


@each_call
def test_a_kernel_can_be_counted_without_being_computed(kernel, options):
    computed = shapes(kernel, options)
    with torch.device("meta"):
        assert shapes(kernel, options) == computed
    with FakeTensorMode():
        assert shapes(kernel, options) == computed


@each_call
def test_no_table_of_all_pairs_of_steps_is_held(kernel, options):
    def peak(steps):
        address = torch.randint(9, (1, steps))
        v, width = (address, 5) if kernel == "addressed_runs" else (torch.randn(1, steps, 3), 3)
        S = torch.zeros(1, 9, width).to(v)
        function = getattr(addresses, kernel)
        return trace_memory(lambda: function(address, address, v, S, **options)).peak_bytes

    assert peak(4096) < 2.2 * peak(2048)  # where a table would be 4 times as large


@each_call
def test_an_address_beyond_the_state_is_an_error(kernel, options):
    (read, write), (v, S) = random(2), given(kernel, 2)
    beyond = read.clone()
    beyond[0, 3] = A
    for pair in ((beyond, write), (read, beyond)):
        with pytest.raises(RuntimeError, match=r"index 2[45] is out of bounds"):
            getattr(addresses, kernel)(*pair, v, S, **options)
