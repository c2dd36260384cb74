"""Each kernel equals the loop that defines it, on everything it returns and every gradient.

A new kernel is covered by adding a row to CASES.
"""

import inspect
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from helpers import same

from qllk.model import addresses, kernels, linformer, mamba, wkv
from qllk.model.kernels import softmax_attention_loop
from qllk.model.masks import Mask, causal_mask
from qllk.probes.measure import trace_memory

FUNCTIONS = {
    name: function
    for module in (kernels, addresses, wkv, mamba, linformer)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
}


class Case(NamedTuple):
    """A kernel, the axes of its tensors, and how it and its twin are called."""

    kernel: str
    tensors: dict[str, str]  # argument -> one letter or size per axis; "#": of whole numbers
    options: dict  # only of the fast form: how it computes, never what
    mask: Callable | None  # (B, T, N) -> Mask: what both obey
    implied: bool  # whether the kernel obeys the mask without being given it
    plain: dict  # arguments of both that are no tensors

    def twin(self):
        return FUNCTIONS[re.search(r"Twin\s+(\w+_loop)", FUNCTIONS[self.kernel].__doc__)[1]]


def case(kernel, options=None, mask=None, implied=False, plain=None, **tensors):
    return Case(kernel, tensors, options or {}, mask, implied, plain or {})


SUM = {"x": "BTD"}
CUMSUM = {"q": "BTD", "k": "BTD", "v": "BTD"}
LINEAR = {"q": "BHTK", "k": "BHTK", "v": "BHTV"}
SOFTMAX = {"q": "BHTK", "k": "BHTK", "v": "BHTV"}
RAGGED = {"q": "BHTK", "k": "BHNK", "v": "BHNV"}  # more keys than queries


DELTA = {"q": "BHTK", "k": "BHTK", "v": "BHTV", "beta": "BHT1"}
WKV = {"k": "BTD", "v": "BTD", "log_decay": "D", "bonus": "D"}
GENERALISED = {**LINEAR, "removal": "BHTK", "rate": "BHTK", "log_decay": "BHTK"}
SCAN = {"x": "BTD", "dt": "BTD", "A": "DK", "b": "BTK", "c": "BTK"}
BLOCKS = {"q": "BHTK", "k": "BHTK", "v": "BHTK", "to_k": "23", "to_v": "23"}
OPEN = {"slots_k": "BH4K", "slots_v": "BH4K", "open_k": "BH2K", "open_v": "BH2K"}
ADDRESSED = {"read": "#BT", "write": "#BT"}
LATENT = {"q": "BHTM", "c": "BNL", "r": "BNU", "to_k": "HKL", "to_v": "HVL"}


def causal(B, T, N):
    return Mask()


def window(B, T, N):
    return Mask(window=3)


def sinking(B, T, N):
    return Mask(window=3, sinks=2)


def owners(B, N):
    """Two documents to a row, the second longer by one in each row that follows."""
    return torch.arange(N) + torch.arange(B)[:, None] >= N // 2


def documents(B, T, N):
    return Mask(documents=owners(B, N))


def windowed_documents(B, T, N):
    return Mask(window=3, documents=owners(B, N))


def open_documents(B, T, N):
    return Mask(causal=False, documents=owners(B, N))


def padded(B, T, N):
    """The second row is shorter than the first. No query is without a key."""
    return Mask(text=torch.arange(N) < N - torch.arange(B)[:, None] * T)


CASES = {
    "sum": case("running_sum", **SUM),
    "sum, from a state": case("running_sum", **SUM, S="BD"),
    "sum, decaying": case("running_sum", {"chunk": 4}, **SUM, log_decay="D"),
    "sum, decaying, from a state": case("running_sum", {"chunk": 3}, **SUM, S="BD", log_decay="D"),
    "sum, decaying at every step": case("running_sum", **SUM, log_decay="BTD"),
    "sum, decaying at every step, from a state": case(
        "running_sum", **SUM, S="BD", log_decay="BTD"
    ),
    "cumsum": case("cumsum_kernel", **CUMSUM),
    "cumsum, from a state": case("cumsum_kernel", **CUMSUM, S="BD"),
    "cumsum, decaying": case("cumsum_kernel", **CUMSUM, S="BD", log_decay="D"),
    "linear": case("linear_attention", {"chunk": 4}, **LINEAR),
    "linear, from a state": case("linear_attention", {"chunk": 3}, **LINEAR, S="BHKV"),
    "linear, in chunks of one": case("linear_attention", {"chunk": 1}, **LINEAR, S="BHKV"),
    "linear, decay per head": case(
        "linear_attention", {"chunk": 4}, **LINEAR, log_decay="BHT1", S="BHKV"
    ),
    "linear, decay per channel": case(
        "linear_attention", {"chunk": 4}, **LINEAR, log_decay="BHTK", S="BHKV"
    ),
    "linear, default chunk": case("linear_attention", **LINEAR, log_decay="BHTK", S="BHKV"),
    "softmax, seeing all": case("softmax_attention", **RAGGED),
    "softmax, causal": case("softmax_attention", mask=causal, **RAGGED),
    "softmax, window": case("softmax_attention", mask=window, **RAGGED),
    "softmax, documents": case("softmax_attention", mask=open_documents, **RAGGED),
    "causal": case("causal_attention", mask=causal, implied=True, **SOFTMAX),
    "causal, by a mask": case("causal_attention", mask=causal, **SOFTMAX),
    "causal, window": case("causal_attention", mask=window, **SOFTMAX),
    "causal, after other keys": case("causal_attention", mask=causal, implied=True, **RAGGED),
    "causal, window, after other keys": case("causal_attention", mask=window, **RAGGED),
    "causal, sinks": case("causal_attention", mask=sinking, **SOFTMAX),
    "causal, sinks, after other keys": case("causal_attention", mask=sinking, **RAGGED),
    "causal, documents": case("causal_attention", mask=documents, **SOFTMAX),
    "causal, padding": case("causal_attention", mask=padded, **RAGGED),
    "causal, bias": case("causal_attention", mask=causal, **SOFTMAX, bias="HTT"),
    "causal, documents, window, bias": case(
        "causal_attention", mask=windowed_documents, **RAGGED, bias="HTN"
    ),
    "tiled": case("tiled_attention", {"tile": 4}, causal, True, **SOFTMAX),
    "tiled, after other keys": case("tiled_attention", {"tile": 3}, causal, True, **RAGGED),
    "tiled, in tiles of one": case("tiled_attention", {"tile": 1}, causal, True, **RAGGED),
    "tiled, default tile": case("tiled_attention", mask=causal, implied=True, **RAGGED),
    "latent": case("latent_attention", **LATENT),
    "latent, documents": case("latent_attention", mask=documents, **LATENT),
    "latent, absorbed, documents": case("absorbed_attention", mask=documents, **LATENT),
    "latent, absorbed": case("absorbed_attention", **LATENT),
    "latent, windowed": case("latent_attention", mask=window, **LATENT),
    "latent, absorbed, open documents": case("absorbed_attention", mask=open_documents, **LATENT),
    "delta": case("delta_rule", {"chunk": 4}, **DELTA),
    "delta, from a state": case("delta_rule", {"chunk": 3}, **DELTA, S="BHKV"),
    "delta, in chunks of one": case("delta_rule", {"chunk": 1}, **DELTA, S="BHKV"),
    "delta, decay per head": case("delta_rule", {"chunk": 4}, **DELTA, log_decay="BHT1", S="BHKV"),
    "delta, decay per channel": case(
        "delta_rule", {"chunk": 4}, **DELTA, log_decay="BHTK", S="BHKV"
    ),
    "delta, default chunk": case("delta_rule", **DELTA, log_decay="BHTK", S="BHKV"),
    "fused, seeing all": case("fused_attention", **RAGGED),
    "fused, masked": case("fused_attention", mask=window, **RAGGED),
    "fused, biased": case("fused_attention", **RAGGED, bias="HTN"),
    "fused, masked and biased": case("fused_attention", mask=window, **RAGGED, bias="HTN"),
    "fused, documents and bias": case("fused_attention", mask=open_documents, **RAGGED, bias="HTN"),
    "convolution": case("causal_conv", x="BTD", weight="WD"),
    "convolution, from a past": case("causal_conv", x="BTD", weight="WD", past="BLD"),
    "convolution of width one": case("causal_conv", x="BTD", weight="1D"),
    "addressed sum": case("addressed_sum", {"chunk": 4}, **ADDRESSED, v="BTV", S="BAV"),
    "addressed sum, in chunks of one": case(
        "addressed_sum", {"chunk": 1}, **ADDRESSED, v="BTV", S="BAV"
    ),
    "addressed sum, decaying": case(
        "addressed_sum", {"chunk": 3}, plain={"log_decay": -0.3}, **ADDRESSED, v="BTV", S="BAV"
    ),
    "addressed sum, default chunk": case(
        "addressed_sum", plain={"log_decay": -0.3}, **ADDRESSED, v="BTV", S="BAV"
    ),
    "addressed last": case("addressed_last", **ADDRESSED, v="BTV", S="BAV"),
    "addressed last, whole numbers": case("addressed_last", **ADDRESSED, v="#BTV", S="#BAV"),
    "addressed runs": case("addressed_runs", **ADDRESSED, x="#BT", S="#BA5"),
    "addressed runs, two owners to a row": case(
        "addressed_runs", plain={"owners": 2}, **ADDRESSED, x="#BT", S="#BA5"
    ),
    "wkv": case("wkv", **WKV),
    "wkv, from a state": case("wkv", **WKV, logsum="BD", mean="BD"),
    "generalised delta": case("generalised_delta_rule", {"chunk": 4}, **GENERALISED),
    "generalised delta, from a state": case(
        "generalised_delta_rule", {"chunk": 3}, **GENERALISED, S="BHKV"
    ),
    "generalised delta, in chunks of one": case(
        "generalised_delta_rule", {"chunk": 1}, **GENERALISED, S="BHKV"
    ),
    "selective scan": case("selective_scan", **SCAN),
    "selective scan, from a state": case("selective_scan", **SCAN, h="BDK"),
    "blocks": case("block_attention", **BLOCKS),
    "blocks, in the middle of one": case("block_attention", **BLOCKS, **OPEN),
    "generalised delta, default chunk": case("generalised_delta_rule", **GENERALISED, S="BHKV"),
}
SHAPES = {  # T ragged against every chunk above, and shorter than the window and the convolution
    "long": {"B": 2, "T": 11, "H": 2, "D": 5, "K": 3, "V": 4, "W": 4},
    "one row": {"B": 1, "T": 8, "H": 3, "D": 4, "K": 4, "V": 2, "W": 4},
    "one step": {"B": 2, "T": 1, "H": 2, "D": 3, "K": 2, "V": 3, "W": 4},
    "one of everything": {"B": 1, "T": 1, "H": 1, "D": 1, "K": 1, "V": 1, "W": 1},
}
GRADCHECK = {"B": 1, "T": 5, "H": 2, "D": 2, "K": 2, "V": 1, "W": 3}

ASKED = {
    "log_decay": lambda x: -F.softplus(x),  # below zero
    "beta": lambda x: x.sigmoid() / 8,  # small, since the keys are longer than 1
    "rate": lambda x: x.sigmoid() / 8,
    "dt": F.softplus,
    "A": lambda x: -F.softplus(x),
    "read": lambda x: x - 1,  # -1 for no address
    "write": lambda x: x - 1,
}

DIFFERENTIABLE = {
    name: case
    for name, case in CASES.items()
    if not all(axes.startswith("#") for axes in case.tensors.values())
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def sizes_of(shape):
    latent = {"L": shape["W"] - 1, "U": 2, "M": shape["K"] + 2}
    return {**shape, "N": shape["T"] + 3, "A": 4, **latent}


def inputs(case, sizes):
    """Random tensors for a case, within what the kernels ask of them."""
    tensors = {}
    for name, axes in case.tensors.items():
        shape = [int(a) if a.isdigit() else sizes[a] for a in axes.lstrip("#")]
        if axes.startswith("#"):
            tensors[name] = ASKED.get(name, torch.clone)(torch.randint(4, shape))
        else:
            x = torch.randn(shape, dtype=torch.float64)
            tensors[name] = ASKED.get(name, torch.clone)(x).requires_grad_()
    return tensors


def call(case, tensors, **options):
    """What the kernel returns, as a tuple."""
    kernel = FUNCTIONS[case.kernel]
    given = {} if case.implied else masks(case, kernel, tensors)
    return as_tuple(kernel(**tensors, **case.plain, **given, **{**case.options, **options}))


def call_twin(case, tensors):
    """The same of the loop that defines it, which is always given the mask."""
    return as_tuple(case.twin()(**tensors, **case.plain, **masks(case, case.twin(), tensors)))


def masks(case, function, tensors):
    """The mask as this function takes it: as a value, or as its table."""
    if case.mask is None:
        return {}
    B, _, T, _ = tensors["q"].shape
    N = tensors["k"].shape[2] if "k" in tensors else tensors["c"].shape[1]
    mask = case.mask(B, T, N)
    takes_value = inspect.signature(function).parameters["mask"].annotation == "Mask"
    return {"mask": mask if takes_value else mask.table(T, N)}


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def gradients(outputs, tensors):
    """Of a fixed random weighting of everything returned, the final state included."""
    tensors = {name: x for name, x in tensors.items() if x.requires_grad}
    if not tensors:
        return {}
    weigh = torch.Generator().manual_seed(1)
    total = sum((y * torch.randn(y.shape, generator=weigh).to(y)).sum() for y in outputs)
    found = torch.autograd.grad(total, list(tensors.values()), materialize_grads=True)
    return dict(zip(tensors, found, strict=True))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@each_case
def test_kernel_equals_its_loop_on_outputs_final_state_and_gradients(case, shape):
    tensors = inputs(case, sizes_of(shape))
    fast, slow = call(case, tensors), call_twin(case, tensors)
    same(fast, slow, atol=1e-12)  # what the docstrings promise
    same(gradients(fast, tensors), gradients(slow, tensors))


@pytest.mark.parametrize("case", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)
def test_gradients_equal_finite_differences(case):
    tensors = inputs(case, sizes_of(GRADCHECK))
    chunk = {"chunk": 2} if "chunk" in case.options else {}

    def kernel(*args):
        return call(case, dict(zip(tensors, args, strict=True)), **chunk)

    assert torch.autograd.gradcheck(kernel, tuple(tensors.values()))


def test_every_kernel_with_a_twin_has_a_row():
    with_loop = {name for name in FUNCTIONS if f"{name}_loop" in FUNCTIONS}
    with_twin = {name for name, f in FUNCTIONS.items() if "Twin " in (f.__doc__ or "")}
    assert with_loop | with_twin == {case.kernel for case in CASES.values()}


def test_every_loop_is_the_twin_of_a_kernel():
    loops = {name for name in FUNCTIONS if name.endswith("_loop")}
    assert loops == {case.twin().__name__ for case in CASES.values()}


def test_every_argument_of_a_kernel_has_a_row():
    for name in {case.kernel for case in CASES.values()}:
        rows = [case for case in CASES.values() if case.kernel == name]
        covered = {a for c in rows for a in (*c.tensors, *c.options, *c.plain)}
        covered |= {"mask" for c in rows if c.mask and not c.implied}
        missing = set(inspect.signature(FUNCTIONS[name]).parameters) - covered
        assert not missing, f"{name}: no row passes {missing}"


def test_the_cumsum_kernel_is_linear_attention_with_heads_of_width_one():
    q, k, v = (torch.randn(2, 9, 5, dtype=torch.float64) for _ in range(3))
    S, log_decay = torch.randn(2, 5, dtype=torch.float64), -torch.rand(5, dtype=torch.float64)
    y, after = kernels.cumsum_kernel(q, k, v, log_decay, S)

    def heads(x):  # (B,T,D) -> (B,D,T,1)
        return x.transpose(1, 2)[..., None]

    decay = log_decay[:, None, None].expand(2, 5, 9, 1)
    o, memory = kernels.linear_attention(
        heads(q), heads(k), heads(v), decay, S[..., None, None], chunk=4
    )
    same(o[..., 0].transpose(1, 2), y)
    same(memory[..., 0, 0], after)


def test_causal_attention_equals_softmax_attention_with_a_table():
    q, k, v = (torch.randn(2, 3, 7, 4, dtype=torch.float64) for _ in range(3))
    for T, window in ((7, None), (7, 2), (3, None), (3, 2), (1, None), (1, 1)):
        table = kernels.softmax_attention(q[:, :, -T:], k, v, causal_mask(T, 7, window))
        same(kernels.causal_attention(q[:, :, -T:], k, v, Mask(window=window)), table)


@pytest.mark.parametrize("tile", [32, 64, 128])
def test_tiled_attention_equals_the_table_in_outputs_and_gradients(tile):
    q = torch.randn(1, 2, 150, 4, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(1, 2, 200, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    tensors = {"q": q, "k": k, "v": v}
    tiled = kernels.tiled_attention(q, k, v, tile)
    table = kernels.softmax_attention(q, k, v, causal_mask(150, 200))
    same(tiled, table, atol=1e-12)
    same(gradients((tiled,), tensors), gradients((table,), tensors))


def kept_for_backward(attend, T):
    """Numbers that a call keeps for its backward pass."""
    q, k, v = (torch.randn(1, 1, T, 4, requires_grad=True) for _ in range(3))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x), lambda x: x):
        attend(q, k, v)
    return sum(x.numel() for x in kept)


def test_tiled_attention_keeps_one_number_per_query_and_no_table():
    assert kept_for_backward(kernels.tiled_attention, 300) == 300 * (4 + 4 + 4 + 4 + 1)
    assert kept_for_backward(kernels.softmax_attention, 300) > 300 * 300


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_tiled_attention_never_holds_more_than_a_tile_of_the_table(pass_):
    def peak(T):
        q, k, v = (torch.randn(1, 1, T, 4, requires_grad=True) for _ in range(3))

        def run():
            o = kernels.tiled_attention(q, k, v, 32)
            return o if pass_ == "forward" else torch.autograd.grad(o.sum(), (q, k, v))

        return trace_memory(run).peak_bytes

    table = 512 * 512 * 4
    assert peak(512) < table / 8
    assert peak(512) < 2.2 * peak(256)  # where a table would be 4 times as large


def test_scores_too_large_for_an_exponential_stay_finite():
    q, k, v = (torch.randn(1, 1, 9, 4, dtype=torch.float64) for _ in range(3))
    for attend in (kernels.tiled_attention, kernels.causal_attention):
        same(attend(1e4 * q, k, v), kernels.softmax_attention(1e4 * q, k, v, causal_mask(9, 9)))


def test_attention_weights_are_shares_of_the_visible_keys():
    q, k = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 7, 5).double()
    mask = causal_mask(4, 7, window=2, sinks=1)
    table = kernels.attention_weights(q, k, mask)
    same(table.sum(dim=-1), torch.ones(2, 3, 4, dtype=torch.float64))
    assert ((table > 0) == mask).all()
    each = torch.eye(7, dtype=torch.float64).expand(2, 3, 7, 7)  # every key's value is its name
    same(table, softmax_attention_loop(q, k, each, mask))


def test_a_window_of_one_returns_the_newest_value():
    q, k, v = (torch.randn(1, 2, 5, 3, dtype=torch.float64) for _ in range(3))
    same(kernels.causal_attention(q, k, v, Mask(window=1)), v)


def rows(mask):
    return ["".join(".x"[visible] for visible in row) for row in mask.tolist()]


def test_the_causal_mask_of_equal_lengths_is_the_lower_triangle():
    assert rows(causal_mask(3, 3)) == ["x..", "xx.", "xxx"]


def test_the_causal_mask_puts_queries_at_the_last_positions():
    assert rows(causal_mask(2, 4)) == ["xxx.", "xxxx"]
    assert rows(causal_mask(1, 4)) == ["xxxx"]


def test_a_window_shows_its_positions_and_no_more():
    assert rows(causal_mask(4, 4, window=2)) == ["x...", "xx..", ".xx.", "..xx"]
    assert rows(causal_mask(2, 4, window=3)) == ["xxx.", ".xxx"]
    assert rows(causal_mask(3, 3, window=1)) == ["x..", ".x.", "..x"]
    assert rows(causal_mask(2, 3, window=99)) == rows(causal_mask(2, 3))


def test_sinks_are_visible_outside_the_window():
    assert rows(causal_mask(5, 5, window=2, sinks=1)) == [
        "x....",
        "xx...",
        "xxx..",
        "x.xx.",
        "x..xx",
    ]
    assert rows(causal_mask(1, 6, window=2, sinks=2)) == ["xx..xx"]
    assert rows(causal_mask(3, 3, window=1, sinks=99)) == rows(causal_mask(3, 3))


# ---------------------------------------------------------------- masks


NUMBERS = torch.tensor([[0, 0, 1, 1]])
TEXT = torch.tensor([[True, True, True, False]])


def test_a_mask_that_hides_nothing_has_no_table():
    assert Mask(causal=False).table(3, 4) is None


def test_the_default_mask_is_causal():
    assert rows(Mask().table(3, 3)) == rows(causal_mask(3, 3))
    assert rows(Mask().table(1, 4)) == ["xxxx"]


def test_the_table_of_a_window_with_sinks_is_that_of_the_causal_mask():
    assert rows(Mask(window=2, sinks=1).table(5, 5)) == rows(causal_mask(5, 5, window=2, sinks=1))
    assert rows(Mask(window=2).table(2, 4)) == rows(causal_mask(2, 4, window=2))


def test_the_table_of_documents_is_block_diagonal():
    table = Mask(causal=False, documents=NUMBERS).table(4, 4)
    assert table.shape == (1, 1, 4, 4)
    assert rows(table[0, 0]) == ["xx..", "xx..", "..xx", "..xx"]
    assert rows(Mask(documents=NUMBERS).table(4, 4)[0, 0]) == ["x...", "xx..", "..x.", "..xx"]


def test_queries_of_a_table_of_documents_stand_at_the_last_positions():
    assert rows(Mask(documents=NUMBERS).table(2, 4)[0, 0]) == ["..x.", "..xx"]
    assert rows(Mask(causal=False, documents=NUMBERS).table(3, 4)[0, 0]) == ["xx..", "..xx", "..xx"]


def test_the_table_of_padding_hides_it_from_every_query():
    table = Mask(causal=False, text=TEXT).table(3, 4)
    assert table.shape == (1, 1, 3, 4)
    assert rows(table[0, 0]) == ["xxx."] * 3
    assert rows(Mask(text=TEXT).table(3, 4)[0, 0]) == ["xx..", "xxx.", "xxx."]


def test_a_table_combines_all_that_a_mask_says_row_by_row():
    mask = Mask(window=2, documents=torch.cat((NUMBERS, 0 * NUMBERS)), text=torch.cat((TEXT, TEXT)))
    first, second = mask.table(4, 4)[:, 0]
    assert rows(first) == ["x...", "xx..", "..x.", "..x."]
    assert rows(second) == ["x...", "xx..", ".xx.", "..x."]


@pytest.mark.parametrize(("field", "values"), [("documents", NUMBERS), ("text", TEXT)])
def test_a_mask_needs_a_value_for_each_key(field, values):
    for wrong in (values, values[0], values[..., None]):
        message = rf"{field} must have a value for each of the 5 positions .* \(batch, 5\); got"
        with pytest.raises(ValueError, match=message):
            Mask(**{field: wrong}).table(3, 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 0}, "Mask: window must be a whole number above 0, got 0"),
        ({"window": 2.5}, "Mask: window must be a whole number above 0, got 2.5"),
        ({"window": 4, "sinks": -1}, "sinks must be a whole number, 0 or more, got -1"),
        ({"window": 4, "sinks": True}, "sinks must be a whole number, 0 or more, got True"),
        ({"sinks": 2}, "sinks=2 need a window: without one, every position stays visible"),
        ({"window": 4, "causal": False}, "a window needs a causal mask, got window=4, causal=F"),
    ],
)
def test_a_mask_refuses_what_does_not_fit_together(fields, message):
    with pytest.raises(ValueError, match=message):
        Mask(**fields)


def test_a_plain_mask_hides_nothing_but_the_future():
    assert Mask().plain
    assert Mask(causal=False).plain
    for mask in (Mask(window=2), Mask(documents=NUMBERS), Mask(text=TEXT)):
        assert not mask.plain


# ---------------------------------------------------------------- by hand


def row(*numbers):
    """One row, one channel: (1,T,1)."""
    return torch.tensor(numbers, dtype=torch.float64)[None, :, None]


HALF = torch.tensor([0.5], dtype=torch.float64).log()


def test_running_sum_by_hand():
    sums, S = kernels.running_sum(row(1, 2, 4), S=torch.tensor([[10.0]], dtype=torch.float64))
    same(sums, row(11, 13, 17))
    assert S.item() == 17


def test_running_sum_by_hand_forgets_half_each_step():
    S = torch.tensor([[8.0]], dtype=torch.float64)
    sums, S = kernels.running_sum(row(1, 2, 4), HALF, S, chunk=2)
    same(sums, row(5, 4.5, 6.25))
    same(S, row(6.25)[0])


def test_running_sum_adds_half_precision_in_single():
    ones = torch.ones(1, 1000, 1, dtype=torch.bfloat16)
    assert ones[0, 0] + 256 == 256  # where a half-precision sum would stop
    sums, S = kernels.running_sum(ones)
    assert sums.dtype == torch.float32
    assert S.item() == 1000


@pytest.mark.parametrize("name", ["linear", "delta"])
@pytest.mark.parametrize("decay", [torch.bfloat16, torch.float32, None])
def test_matrix_states_are_computed_in_single_precision_whatever_was_given(name, decay):
    tensors = inputs(CASES[f"{name}, decay per head"], sizes_of(SHAPES["long"]))
    half = {key: x.detach().to(torch.bfloat16) for key, x in tensors.items() if key != "S"}
    half["log_decay"] = decay and half["log_decay"].to(decay)
    single = {key: x if x is None else x.float() for key, x in half.items()}
    kernel = getattr(kernels, CASES[f"{name}, decay per head"].kernel)
    same(kernel(**half), kernel(**single), atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        same(kernel(**single), kernel(**half), atol=0)


def test_a_decaying_sum_can_be_counted_without_being_computed():
    x, decay = torch.empty(2, 9, 3, device="meta"), torch.empty(3, device="meta")
    sums, S = kernels.running_sum(x, log_decay=decay)
    assert (sums.shape, S.shape) == ((2, 9, 3), (2, 3))


def test_cumsum_kernel_by_hand():
    y, S = kernels.cumsum_kernel(row(1, 10, 100), row(1, 2, 3), row(5, 6, 7))
    same(y, row(5, 170, 3800))
    assert S.item() == 5 + 12 + 21


def test_linear_attention_by_hand_finds_a_value_by_its_key():
    keys = torch.eye(2, dtype=torch.float64)[None, None]  # two steps, two orthogonal keys
    values = torch.tensor([[[[3.0], [7.0]]]], dtype=torch.float64)
    query = keys.flip(2)  # ask each step for the other's key
    o, S = kernels.linear_attention(query, keys, values)
    same(o[0, 0, :, 0], torch.tensor([0.0, 3.0], dtype=torch.float64))
    same(S[0, 0, :, 0], torch.tensor([3.0, 7.0], dtype=torch.float64))


def test_the_delta_rule_by_hand_replaces_what_a_key_held():
    k = torch.tensor([[[[1.0, 0], [1, 0], [0, 1]]]], dtype=torch.float64)
    v = torch.tensor([[[[3.0], [7], [4]]]], dtype=torch.float64)
    beta = torch.tensor([[[[1.0], [1], [0.5]]]], dtype=torch.float64)
    o, S = kernels.delta_rule(k, k, v, beta)
    same(o.flatten(), torch.tensor([3.0, 7, 2], dtype=torch.float64))
    same(S.flatten(), torch.tensor([7.0, 2], dtype=torch.float64))
    assert kernels.linear_attention(k, k, v)[0].flatten()[1] == 3 + 7  # which only adds


def test_softmax_attention_by_hand():
    q = torch.zeros(1, 1, 1, 2, dtype=torch.float64)  # a query that prefers nothing
    k = torch.randn(1, 1, 4, 2, dtype=torch.float64)
    v = torch.tensor([1.0, 2.0, 6.0, 99.0], dtype=torch.float64)[None, None, :, None]
    mask = torch.tensor([[True, True, True, False]])
    same(kernels.softmax_attention(q, k, v, mask).item(), 3.0)


def test_causal_conv_by_hand_puts_the_first_tap_on_the_newest():
    taps = torch.tensor([[1.0], [10.0], [100.0]], dtype=torch.float64)
    past = torch.tensor([[[7.0], [8.0]]], dtype=torch.float64)
    y, past = kernels.causal_conv(row(1, 2), taps, past)
    same(y, row(1 + 80 + 700, 2 + 10 + 800))
    same(past, row(1, 2))


@pytest.mark.parametrize(
    "name",
    [
        "sum, decaying",
        *("linear, decay per head", "linear, decay per channel"),
        *("delta, decay per head", "delta, decay per channel"),
    ],
)
def test_strong_forgetting_stays_finite(name):
    case = CASES[name]
    tensors = inputs(case, sizes_of({**SHAPES["long"], "T": 70}))
    with torch.no_grad():
        tensors["log_decay"].mul_(100)
    outputs = call(case, tensors, chunk=32)
    for tensor in (*outputs, *gradients(outputs, tensors).values()):
        assert tensor.isfinite().all()


# ---------------------------------------------------------------- the recurrences of RWKV


def test_wkv_by_hand_weighs_values_by_their_keys_and_their_ages():
    k, v = row(0, math.log(3), 0), row(1, 2, 6)
    bonus = torch.tensor([4], dtype=torch.float64).log()
    o, logsum, mean = wkv.wkv(k, v, HALF, bonus)
    same(o, row(1, (1 + 12 * 2) / 13, (0.5 * 1 + 3 * 2 + 4 * 6) / 7.5))
    same(logsum.exp(), row(0.25 + 1.5 + 1)[0])
    same(mean, row((0.25 * 1 + 1.5 * 2 + 6) / 2.75)[0])


@pytest.mark.parametrize("size", [1e3, -1e3])
def test_keys_too_large_for_an_exponential_stay_finite_in_wkv(size):
    tensors = inputs(CASES["wkv"], sizes_of(SHAPES["long"]))
    k = (tensors["k"] + size).float()
    k[:, 5] *= 2  # far above or below all others
    single = {key: x.detach().float() for key, x in tensors.items()} | {"k": k}
    single["log_decay"] *= 100
    double = {key: x.double().requires_grad_() for key, x in single.items()}
    single = {key: x.requires_grad_() for key, x in single.items()}
    found, expected = wkv.wkv(**single), wkv.wkv_loop(**double)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)
    for gradient in gradients(found, single).values():
        assert gradient.isfinite().all()


def test_the_generalised_delta_rule_with_one_key_and_one_rate_is_the_delta_rule():
    tensors = inputs(CASES["delta, decay per head"], sizes_of(SHAPES["long"]))
    q, k, v, beta, log_decay, S = tensors.values()
    fade = log_decay.expand_as(k)
    found = wkv.generalised_delta_rule(q, beta * k, v, k, beta * fade.exp(), fade, S, chunk=4)
    same(found, kernels.delta_rule(q, k, v, beta, log_decay, S))


@pytest.mark.parametrize("log_decay", [-math.exp(-0.5), -2.0])  # RWKV-7's strongest; the limit
def test_the_strongest_decay_keeps_single_precision_in_the_generalised_delta_rule(log_decay):
    tensors = inputs(CASES["generalised delta"], sizes_of({**SHAPES["long"], "T": 70}))
    tensors["removal"] = F.normalize(tensors["removal"], dim=-1)
    tensors["log_decay"] = torch.full_like(tensors["log_decay"], log_decay)
    o, S = wkv.generalised_delta_rule(**{name: x.detach().float() for name, x in tensors.items()})
    expected, S_expected = wkv.generalised_delta_rule_loop(**tensors)
    same(o.double(), expected.detach(), atol=1e-4)
    same(S.double(), S_expected.detach(), atol=1e-4)
