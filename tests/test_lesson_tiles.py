"""Lesson 13: its cost model, the truths of its exercises, its claims' tests, and its widget."""

import itertools
import math

import pytest
import torch
from helpers import same, vectors

from qllk.lab import check, ledger
from qllk.lab.exercise import WRONG_VALUES
from qllk.lab.lessons import exercises, tiles
from qllk.lab.pictures.charts import page_html
from qllk.model import kernels, masks
from qllk.study.figures import digest

EXACT = exercises.tiles


def table_form(q, k, v):
    return kernels.softmax_attention(q, k, v, masks.causal_mask(q.shape[2], k.shape[2]))


# ---------------------------------------------------------------- the cost model


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (7, 2), (20, 30)])
def test_tiles_of_any_size_give_exact_attention(rows, columns, causal):
    q, k, v = vectors(3, 20, 4)
    found = tiles.attend_in_tiles(q, k, v, tiles.FastMemory(10**6), rows, columns, causal)
    mask = masks.causal_mask(20, 20) if causal else None
    same(found, kernels.softmax_attention(q[None, None], k[None, None], v[None, None], mask)[0, 0])


def test_the_table_form_gives_exact_attention_and_moves_its_table_four_times():
    q, k, v = vectors(3, 20, 4)
    memory = tiles.FastMemory(10**6)
    found = tiles.attend_by_table(q, k, v, memory, 6, 3)
    same(found, kernels.softmax_attention(q[None, None], k[None, None], v[None, None])[0, 0])
    assert memory.moved == 4 * 20**2 + 2 * 20 * 4 + 2 * math.ceil(20 / 6) * 20 * 4


@pytest.mark.parametrize(("N", "d", "M", "columns"), [(60, 8, 500, 4), (33, 4, 300, 7)])
def test_the_traffic_that_the_exercise_asks_for_is_what_the_memory_counts(N, d, M, columns):
    rows = next(r for r in range(M, 0, -1) if r * (2 * d + 2 + columns) + 2 * columns * d <= M)
    memory = tiles.FastMemory(M)
    tiles.attend_in_tiles(*vectors(3, N, d), memory, rows, columns)
    assert memory.moved == EXACT.traffic(N, d, M, columns)
    assert memory.held == 0
    with pytest.raises(ValueError, match=f"a fast memory of {M} numbers cannot hold"):
        tiles.attend_in_tiles(*vectors(3, N, d), tiles.FastMemory(M), rows + 1, columns)


def test_with_a_very_small_fast_memory_tiles_move_more_than_the_table():
    M, N, columns = 4096, 512, 16
    table = tiles.FastMemory(M)
    tiles.attend_by_table(*torch.zeros(3, N, 64), table, (M - 64 * columns) // 80, columns)
    assert EXACT.traffic(N, 64, M, columns) > table.moved
    assert EXACT.traffic(N, 64, 4 * M, columns) < 4 * N**2 < table.moved


def test_a_fast_memory_counts_and_forgets():
    memory = tiles.FastMemory(10)
    with memory.room():
        memory.load(torch.zeros(4))
        memory.store(memory.make(torch.zeros(6)))
        assert (memory.held, memory.moved) == (10, 10)
        with pytest.raises(ValueError, match="of 10 numbers cannot hold 11; take smaller tiles"):
            memory.make(torch.zeros(1))
    assert (memory.held, memory.most) == (0, 11)


# ---------------------------------------------------------------- the exercises' truths


def test_the_steps_of_all_tiles_make_the_softmax():
    scores, v = 300 * vectors(3, 10), vectors(10, 2)
    m, total, o = torch.full((3,), -math.inf).double(), torch.zeros(3).double(), vectors(3, 2) * 0
    for cols in torch.arange(10).split(4):
        m, total, o = EXACT.step_loop(m, total, o, scores[:, cols], v[cols])
    same(o / total[:, None], scores.softmax(dim=-1) @ v)
    same(m + total.log(), scores.logsumexp(dim=-1))


def test_the_gradient_of_a_tile_is_that_of_autograd():
    scores, v, do = vectors(3, 7).requires_grad_(), vectors(7, 2), vectors(3, 2)
    o = scores.softmax(dim=-1) @ v
    (wanted,) = torch.autograd.grad(o, scores, do)
    scores, logsum = scores.detach(), scores.detach().logsumexp(dim=-1)
    for cols in (slice(0, 4), slice(4, 7)):
        found = EXACT.score_gradient_loop(scores[:, cols], logsum, v[cols], o.detach(), do)
        same(found, wanted[:, cols])


def test_a_step_that_meets_a_query_without_keys_is_refused():
    def unguarded(m, total, o, scores, v):
        larger = torch.maximum(m, scores.amax(dim=-1))
        fade, weights = (m - larger).exp(), (scores - larger[:, None]).exp()
        return larger, fade * total + weights.sum(dim=-1), fade[:, None] * o + weights @ v

    verdict = check.tiles.step.judge(unguarded)
    assert verdict.state == WRONG_VALUES
    assert "got nan" in verdict.cause


# ---------------------------------------------------------------- the claims


def verdict_of(claim_id, **changes):
    evidence = {"ratios": {128: 1.0, 512: 1.0}, "attend": table_form, "moved": lambda N: N**2}
    claim = next(claim for claim in tiles.CLAIMS if claim.id == claim_id)
    verdict, measured = claim.test(tiles.Evidence(**(evidence | changes)))
    assert measured
    return verdict


def in_tiles_of_64(step):
    """Causal attention in tiles of 64, by another step."""

    def attend(q, k, v):
        T, scores = q.shape[2], q @ k.mT * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~masks.causal_mask(T, T), -math.inf)
        m = q.new_full((*q.shape[:3], 1), -math.inf)
        total, o = torch.zeros_like(m), torch.zeros_like(v)
        for cols in torch.arange(T).split(64):
            m, total, o = step(m, total, o, scores[..., cols], v[:, :, cols])
        return o / total

    return attend


def rescaled(m, total, o, scores, v):
    larger = m.maximum(scores.amax(-1, keepdim=True))
    fade, weights = (m - larger).exp(), (scores - larger).exp()
    return larger, fade * total + weights.sum(-1, keepdim=True), fade * o + weights @ v


def not_rescaled(m, total, o, scores, v):
    larger = m.maximum(scores.amax(-1, keepdim=True))
    weights = (scores - larger).exp()
    return larger, total + weights.sum(-1, keepdim=True), o + weights @ v


def without_maximum(m, total, o, scores, v):
    return m, total + scores.exp().sum(-1, keepdim=True), o + scores.exp() @ v


@pytest.mark.parametrize(
    ("attend", "verdict"),
    [
        (kernels.tiled_attention, ledger.HOLDS),
        (kernels.causal_attention, ledger.HOLDS),
        (in_tiles_of_64(rescaled), ledger.HOLDS),
        (in_tiles_of_64(without_maximum), ledger.IN_PART),  # overflows where scores are large
        (in_tiles_of_64(not_rescaled), ledger.DOES_NOT),
    ],
)
def test_online_softmax_is_judged(attend, verdict):
    assert verdict_of("L45", attend=attend) == verdict


def linear_attention(q, k, v):
    return kernels.linear_attention(q.exp(), k.exp(), v)[0]


def moved_by_linear_attention(N, d=64):
    """What linear attention moves while its state of d x d numbers stays in fast memory."""
    memory = tiles.FastMemory(d * d + 4 * d)
    S = memory.make(torch.zeros(d, d))
    for q, k, v in zip(*torch.zeros(3, N, d), strict=True):
        with memory.room():
            S += memory.load(k)[:, None] * memory.load(v)
            memory.store(memory.load(q) @ S)
    return memory.moved


@pytest.mark.parametrize(
    ("attend", "moved", "verdict"),
    [
        (linear_attention, moved_by_linear_attention, ledger.HOLDS),
        (kernels.tiled_attention, lambda N: EXACT.traffic(N, 64, 8192, 16), ledger.IN_PART),
        (table_form, lambda N: 4 * N**2, ledger.DOES_NOT),
    ],
)
def test_memory_and_accesses_are_judged_apart(attend, moved, verdict):
    assert verdict_of("L46", attend=attend, moved=moved) == verdict


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ({64: 1.0, 128: 2.1, 512: 3.0, 1024: 4.0}, ledger.HOLDS),
        ({64: 1.0, 128: 1.5, 512: 3.0, 1024: 4.0}, ledger.IN_PART),
        ({64: 1.0, 128: 1.5, 512: 1.9, 1024: 2.5}, ledger.IN_PART),
        ({64: 0.2, 128: 0.2, 512: 0.3, 1024: 0.3}, ledger.DOES_NOT),
        ({64: 1.9, 128: 1.5, 512: 1.9, 1024: 1.9}, ledger.DOES_NOT),
    ],
)
def test_speed_is_judged_at_the_published_lengths_and_beyond(ratios, verdict):
    assert verdict_of("L47", ratios=ratios) == verdict


# ---------------------------------------------------------------- widget


def test_only_the_side_of_the_queries_decides_how_much_is_moved():
    def moved(rows, columns):
        return tiles.walk(rows, columns, 100, False)[1].values["in the end"]

    assert len({moved(4, columns) for columns in (2, 4, 8)}) == 1
    assert moved(2, 4) > moved(4, 4) > moved(8, 4) > moved(16, 4)


def test_the_map_shows_one_tile_and_what_is_never_visited():
    (table, known), bars, _ = tiles.walk()
    levels = list(itertools.chain.from_iterable(table.rows))
    assert (levels.count(1.0), sum(level < 0 for level in levels)) == (16, 6 * 16)
    assert known.row_names == ["b", "r", "a", "_"]
    assert "Tile 5 of 10" in digest(tiles.walk())
    assert bars.values["so far"] < bars.values["in the end"] < bars.values["with the table"]


def test_the_last_tile_knows_the_whole_row():
    _, q, k = tiles.tiny(tiles.CHANNELS, tiles.SEED, "q", "k")
    scores = q[0] @ k[0].T / 2
    (_, known), *_ = tiles.walk(16, 4, 100, False)
    m = scores.amax(dim=1)
    same(torch.tensor(known.rows).double()[:, 0], m, atol=1e-6)
    same(torch.tensor(known.rows).double()[:, 1], (scores - m[:, None]).exp().sum(1), atol=1e-5)


def test_every_control_changes_the_picture():
    explorer = tiles.walk.widget()
    for name, control in explorer.controls.items():
        values, seen = getattr(control, "options", (False, True)), set()
        for value in values:
            control.value = value
            explorer.wait()
            seen.add(explorer.picture.value)
        assert len(seen) == len(values), name
        explorer.reset()
        explorer.wait()


def test_with_the_largest_tiles_there_is_still_more_than_one_step():
    controls = tiles.walk.widget().controls
    largest = controls["rows"].options[-1], controls["columns"].options[-1]
    assert digest(tiles.walk(*largest, 0)) != digest(tiles.walk(*largest, 100))


def test_all_combinations_of_the_controls_can_be_drawn():
    for settings in itertools.product((2, 4, 8, 16), (2, 4, 8), (0, 40, 100), (True, False)):
        assert "<svg" in page_html(tiles.walk(*settings))
