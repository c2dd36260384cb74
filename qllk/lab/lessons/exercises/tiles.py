"""Exercises of lesson 13, Tile the attention."""

from __future__ import annotations

import math

import torch

from ...exercise import Case, Exercise, normal, shaped


def step(m, total, o, scores, v):
    """Add a tile of scores (T,C) and values (C,V) to the maximum m (T,), the sum (T,), o (T,V)."""
    larger = torch.maximum(m, scores.amax(dim=-1))
    finite = larger.clamp(min=torch.finfo(scores.dtype).min)  # of a query that has seen no key
    fade = (m - finite).exp()
    weights = (scores - finite[:, None]).exp()
    return larger, fade * total + weights.sum(dim=-1), fade[:, None] * o + weights @ v


def step_loop(m, total, o, scores, v):
    """The definition of `step`: the weights of what was seen, all relative to the new maximum."""
    maxima, totals, outputs = m.clone(), torch.zeros_like(total), torch.zeros_like(o)
    for t, row in enumerate(scores.tolist()):
        new = max(m[t].item(), *row)
        maxima[t] = new
        if new == -math.inf:
            continue
        fade = math.exp(m[t].item() - new)
        totals[t], outputs[t] = fade * total[t], fade * o[t]
        for score, value in zip(row, v, strict=True):
            totals[t] += math.exp(score - new)
            outputs[t] += math.exp(score - new) * value
    return maxima, totals, outputs


def score_gradient(scores, logsum, v, o, do):
    """The gradient of a tile of scores (T,C) from logsum (T,), v (C,V), o (T,V) and do (T,V)."""
    weights = (scores - logsum[:, None]).exp()
    shared = (do * o).sum(dim=-1, keepdim=True)  # the mean of do v over all keys of a query
    return weights * (do @ v.T - shared)


def score_gradient_loop(scores, logsum, v, o, do):
    """The definition of `score_gradient`: how much each key is better than the average."""
    gradient = torch.zeros_like(scores)
    for t in range(scores.shape[0]):
        for c in range(scores.shape[1]):
            weight = math.exp(scores[t, c].item() - logsum[t].item())
            gradient[t, c] = weight * (do[t] @ (v[c] - o[t]))
    return gradient


def traffic(N, d, M, columns):
    """The numbers moved with the tallest tile of queries that a fast memory of M numbers holds."""
    # rows: queries, outputs, maxima, sums and scores; columns: keys and values
    rows = (M - 2 * columns * d) // (2 * d + 2 + columns)
    passes = math.ceil(N / rows)
    return N * d + passes * 2 * N * d + N * d + N  # queries, keys and values, outputs, log-sums


def _traffic_loop(N, d, M, columns):
    """The definition of `traffic`: grow the tile while it fits, then count each load and store."""
    rows = 1
    while 2 * (rows + 1) * d + 2 * (rows + 1) + 2 * columns * d + (rows + 1) * columns <= M:
        rows += 1
    moved = 0
    for row in range(0, N, rows):
        queries = min(rows, N - row)
        moved += queries * d
        for column in range(0, N, columns):
            moved += 2 * min(columns, N - column) * d
        moved += queries * d + queries
    return moved


def kinds(N, rows, columns):
    """How many tiles of a causal N x N table hold no pair, need the mask, and need no mask."""
    empty = masked = full = 0
    for first in range(0, N, rows):
        last = min(first + rows, N) - 1
        for oldest in range(0, N, columns):
            newest = min(oldest + columns, N) - 1
            empty += oldest > last
            masked += first < newest and oldest <= last
            full += newest <= first
    return empty, masked, full


def _kinds_loop(N, rows, columns):
    """The definition of `kinds`: look at each tile of the table."""
    table, found = torch.ones(N, N).tril().bool(), [0, 0, 0]
    for band in table.split(rows):
        for tile in band.split(columns, dim=1):
            found[0 if not tile.any() else 2 if tile.all() else 1] += 1
    return tuple(found)


def _tiles_seen(rng):
    for T, C, V, level in ((1, 1, 1, 0.0), (3, 4, 2, 0.0), (5, 2, 3, -3.0), (4, 3, 2, 800.0)):
        before = normal(rng, T)
        seen = level + before, 1 + before.square(), normal(rng, T, V)
        yield Case((*seen, level + 2 * normal(rng, T, C), normal(rng, C, V)))
    scores = normal(rng, 3, 4)
    scores[1:] = -math.inf  # the last two queries see no key of this tile
    m = torch.tensor([0.5, 0.5, -math.inf], dtype=torch.float64)
    total = torch.tensor([1.5, 1.5, 0.0], dtype=torch.float64)
    yield Case((m, total, total[:, None] * normal(rng, 3, 2), scores, normal(rng, 4, 2)))


def _tiles_of_rows(rng):
    """Tiles of rows that are longer than the tile, so that its weights do not add up to 1."""
    for T, N, C, V in ((3, 7, 4, 2), (1, 3, 1, 1), (4, 6, 6, 3), (2, 9, 3, 1)):
        scores, v = 2 * normal(rng, T, N), normal(rng, N, V)
        if N > 3:
            scores[0, 0] = -math.inf  # a masked pair
        o, logsum = scores.softmax(dim=-1) @ v, scores.logsumexp(dim=-1)
        yield Case((scores[:, :C], logsum, v[:C], o, normal(rng, T, V)))


# ---------------------------------------------------------------- parts of mistakes


def _stepped(m, total, o, scores, v, larger=torch.maximum, fade=lambda old, new: (old - new).exp()):
    """A step with another maximum, or another factor for what was summed before."""
    new = larger(m, scores.amax(dim=-1))
    factor, weights = torch.as_tensor(fade(m, new)), (scores - new[:, None]).exp()
    return new, factor * total + weights.sum(-1), factor[..., None] * o + weights @ v


def _divided(state):
    """A step's result with its output divided by the sum."""
    m, total, o = state
    return m, total, o / total[:, None]


def _centred(weights, products):
    """Weights times how far the products lie above their mean by these weights."""
    return weights * (products - (weights * products).sum(-1, keepdim=True))


def _traffic_of_rows(rows_of):
    """A `traffic` whose tile of queries has another height."""

    def answer(N, d, M, columns):
        passes = math.ceil(N / rows_of(d, M, columns))
        return 2 * N * d + N + passes * 2 * N * d

    return answer


def _kinds_of(
    N,
    rows,
    columns,
    empty=lambda first, last, oldest, newest: oldest > last,
    full=lambda first, last, oldest, newest: newest <= first,
):
    """A `kinds` with another rule for which tiles are empty or full."""
    found = [0, 0, 0]
    for first in range(0, N, rows):
        for oldest in range(0, N, columns):
            edges = first, min(first + rows, N) - 1, oldest, min(oldest + columns, N) - 1
            found[0 if empty(*edges) else 2 if full(*edges) else 1] += 1
    return tuple(found)


EXERCISES = (
    Exercise(
        step,
        truth=step_loop,
        cases=_tiles_seen,
        hints=(
            "First the new maximum of each query: of m and of the scores in its row of the tile.",
            "What was summed was relative to m. Which factor makes it relative to the new maximum?",
            "Got nan? A query that has seen no key has the maximum minus infinity, and minus "
            "infinity minus itself is nan: subtract a finite number in its place.",
        ),
        mistakes={
            "The sum and the output before are not rescaled to the new "
            "maximum.": lambda m, total, o, scores, v: _stepped(
                m, total, o, scores, v, fade=lambda old, new: 1.0
            ),
            "Only the sum is rescaled; the output must fade by the same "
            "factor.": lambda m, total, o, scores, v: (
                *step(m, total, o, scores, v)[:2],
                o + (scores - torch.maximum(m, scores.amax(-1))[:, None]).exp() @ v,
            ),
            "The factor is upside down: e to the power of the old maximum minus the "
            "new one.": lambda m, total, o, scores, v: _stepped(
                m, total, o, scores, v, fade=lambda old, new: (new - old).exp()
            ),
            "The maximum is that of this tile alone; an earlier one may be "
            "larger.": lambda m, total, o, scores, v: _stepped(
                m, total, o, scores, v, larger=lambda old, new: new
            ),
            "The weights are not relative to the maximum, so large scores "
            "overflow.": lambda m, total, o, scores, v: (
                torch.maximum(m, scores.amax(-1)),
                total + scores.exp().sum(-1),
                o + scores.exp() @ v,
            ),
            "Divide by the sum once, after the last tile; here the output stays a "
            "sum.": lambda m, total, o, scores, v: _divided(step(m, total, o, scores, v)),
            "A softmax inside the tile forgets how much its keys weigh beside the earlier "
            "ones.": lambda m, total, o, scores, v: (
                *step(m, total, o, scores, v)[:2],
                o + scores.softmax(-1) @ v,
            ),
        },
    ),
    Exercise(
        score_gradient,
        truth=score_gradient_loop,
        cases=_tiles_of_rows,
        hints=(
            "The weights come back from the scores: e to the power of score minus log-sum.",
            "A weight's own gradient is the product of do with its value. The softmax passes on "
            "the weight times what that product is above its mean over all keys of the query.",
            "That mean is the product of do with o, since o is the mean of the values.",
        ),
        mistakes={
            "The mean is over the keys of this tile only; do times o has it over all "
            "keys.": lambda scores, logsum, v, o, do: _centred(
                (scores - logsum[:, None]).exp(), do @ v.T
            ),
            "That is the gradient before the softmax's mean is taken "
            "off.": lambda scores, logsum, v, o, do: (scores - logsum[:, None]).exp() * (do @ v.T),
            "A softmax over the tile gives weights that add up to 1 in the tile; use the "
            "log-sum.": lambda scores, logsum, v, o, do: (
                scores.softmax(-1) * (do @ v.T - (do * o).sum(-1, keepdim=True))
            ),
            "The weight itself is missing as a factor.": lambda scores, logsum, v, o, do: (
                do @ v.T - (do * o).sum(-1, keepdim=True)
            ),
            "The signs are reversed.": lambda *tile: -score_gradient(*tile),
            "That is the gradient of the weights; it has not gone through the "
            "softmax.": lambda scores, logsum, v, o, do: do @ v.T,
        },
    ),
    Exercise(
        traffic,
        truth=_traffic_loop,
        cases=shaped(
            "n, d, m, c", (100, 8, 500, 3), (50, 4, 200, 1), (7, 3, 400, 2), (96, 16, 1500, 8)
        ),
        hints=(
            "For one query the fast memory holds d numbers of q, d of o, a maximum, a sum, and a "
            "score for each column. For one column it holds a key and a value.",
            "Once you have the rows: how many tiles of queries are there, the last one included?",
            "Queries are loaded once, outputs and log-sums stored once. Each tile of queries loads "
            "all keys and values.",
        ),
        mistakes={
            "Keys and values are loaded once for each tile of queries, not once in "
            "all.": lambda N, d, M, columns: 4 * N * d + N,
            "Keys and values are loaded once for each tile of queries, not for each "
            "query.": _traffic_of_rows(lambda d, M, columns: 1),
            "The last tile of queries may be short, but it loads all keys as "
            "well.": lambda N, d, M, columns: (
                2 * N * d + N + N / ((M - 2 * columns * d) // (2 * d + 2 + columns)) * 2 * N * d
            ),
            "The scores of the tile need room, too.": _traffic_of_rows(
                lambda d, M, columns: (M - 2 * columns * d) // (2 * d + 2)
            ),
            "The outputs stay in fast memory while the keys pass, and need room.": _traffic_of_rows(
                lambda d, M, columns: (M - 2 * columns * d) // (d + 2 + columns)
            ),
            "A key comes with its value: both are loaded.": lambda N, d, M, columns: (
                traffic(N, d, M, columns)
                - math.ceil(N / ((M - 2 * columns * d) // (2 * d + 2 + columns))) * N * d
            ),
            "A log-sum is stored for each query, for the backward pass.": lambda N, d, M, columns: (
                traffic(N, d, M, columns) - N
            ),
            "The table is not moved at all: no score leaves the fast "
            "memory.": lambda N, d, M, columns: traffic(N, d, M, columns) + N * N,
        },
    ),
    Exercise(
        kinds,
        truth=_kinds_loop,
        cases=shaped("n, r, c", (8, 4, 4), (1, 1, 1), (7, 3, 2), (9, 2, 5), (10, 1, 4), (6, 9, 2)),
        hints=(
            "Two loops, over the first queries and over the first keys of the tiles.",
            "A tile is empty if its oldest key comes after its last query.",
            "It needs no mask if its newest key is not after its first query. At the edge a tile "
            "is cut off, so its last query and newest key are at most N - 1.",
        ),
        mistakes={
            "A tile has work if its last query sees its oldest key, not only if the first one "
            "does.": lambda N, rows, columns: _kinds_of(
                N, rows, columns, empty=lambda first, last, oldest, newest: oldest > first
            ),
            "A tile whose newest key is a query's own needs no mask.": lambda N, rows, columns: (
                _kinds_of(N, rows, columns, full=lambda first, last, oldest, newest: newest < first)
            ),
            "The newest key of the last column of tiles is N - 1.": lambda N, rows, columns: (
                _kinds_of(
                    N,
                    rows,
                    columns,
                    full=lambda first, last, oldest, newest: oldest + columns - 1 <= first,
                )
            ),
            "Rows are queries, columns are keys.": lambda N, rows, columns: kinds(N, columns, rows),
            "Every tile on or below the diagonal is counted as full.": lambda N, rows, columns: (
                kinds(N, rows, columns)[0],
                0,
                sum(kinds(N, rows, columns)[1:]),
            ),
            "A last tile that is cut off counts, too.": lambda N, rows, columns: kinds(
                N // max(rows, columns) * max(rows, columns), rows, columns
            ),
        },
    ),
)
