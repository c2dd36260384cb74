"""Exercises of lesson 08, Assemble the model: qllk-3 in four steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ....model import kernels
from ....model.contexts import hash_contexts
from ....model.families import build
from ....model.inputs import describe, look_back, start_recall, to_rows
from ....spec import Ngrams, Recall, Spec
from ...exercise import Case, Exercise, normal, use_module


class ByteMixer(nn.Module):
    """A gated causal convolution: each output sees the last `width` inputs."""

    def __init__(self, d, width=8):
        super().__init__()
        self.xg = nn.Linear(d, 2 * d, bias=False)
        self.taps = nn.Parameter(torch.randn(width, d) * width**-0.5)
        self.out = nn.Linear(d, d, bias=False)

    def forward(self, x):
        x, g = self.xg(x).chunk(2, dim=-1)
        y = sum(w * F.pad(x, (0, 0, j, 0))[:, : x.shape[1]] for j, w in enumerate(self.taps))
        return self.out(F.silu(g) * y)


class Block(nn.Module):
    """Norm, mixer, skip; norm, MLP, skip."""

    def __init__(self, d, ratio=2):
        super().__init__()
        self.norm_mix, self.norm_mlp = nn.RMSNorm(d), nn.RMSNorm(d)
        self.mix = ByteMixer(d)
        self.up = nn.Linear(d, ratio * d, bias=False)
        self.down = nn.Linear(ratio * d, d, bias=False)

    def forward(self, x):
        x = x + self.mix(self.norm_mix(x))
        return x + self.down(self.up(self.norm_mlp(x)).relu().square())


class Tables(nn.Embedding):
    """Several tables in one: a hash chooses a row of each, and the rows are summed."""

    def __init__(self, tables, rows, d):
        super().__init__(tables * rows, d, sparse=True)
        nn.init.zeros_(self.weight)
        self.rows = rows

    def forward(self, hashes):
        start = self.rows * torch.arange(hashes.shape[1], device=hashes.device)[:, None]
        return super().forward(to_rows(hashes, self.rows) + start).sum(dim=1)


class Model(nn.Module):
    """qllk-3: bytes, hashed n-grams and what followed before; blocks; a head, and votes."""

    def __init__(self, d, ngrams, recall, rows, addresses, layers=2):
        super().__init__()
        self.contexts, self.recalled, self.addresses = ngrams, recall, addresses
        self.embed = nn.Embedding(256, d)
        self.ngrams = Tables(len(ngrams), rows, d)
        self.recall = Tables(2 * len(recall), 4096, d)
        self.strength = nn.Linear(d, 2 * len(recall), bias=False)
        self.blocks = nn.ModuleList(Block(d) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(d), nn.Linear(d, 256, bias=False)

    def read(self, ids):
        hashes, _ = hash_contexts(ids, self.contexts)
        empty = start_recall(ids, self.recalled, self.addresses, torch.uint8)
        readings, _ = look_back(ids, self.recalled, empty)
        keys, found = describe(readings)
        return self.embed(ids) + self.ngrams(hashes) + self.recall(keys), found

    def forward(self, ids):
        x, found = self.read(ids)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        votes = self.strength(x) * (found >= 0)
        return self.head(x).scatter_add(2, found.clamp(min=0), votes)


# ---------------------------------------------------------------- the library's, with its weights

NGRAMS, CONTEXTS, ROWS = (2, 3, "word"), (3, "words-2"), 4096


def spec_of(d, ngrams, recall, rows, addresses, layers=2):
    """The library's model of the same sizes as `Model`."""
    return Spec(
        d_model=d,
        layers=layers,
        mixers=(("conv", {"width": 8}),),
        mlp=("relu2", {"ratio": 2}),
        ngrams=Ngrams(ngrams, rows),
        recall=Recall(recall, addresses, ROWS),
    )


_RENAMED = {
    "body.blocks.": "blocks.",
    "ngrams.table.": "ngrams.",
    "recall.table.": "recall.",
    "recall.strength.": "strength.",
    ".mlp.up.": ".up.",
    ".mlp.out.": ".down.",
}


def weights_for_model(library):
    """The weights of the library's model under the names of `Model`."""
    found = {}
    for name, weight in library.state_dict().items():
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        found[name] = weight
    return found


def _library(sizes, rng):
    """The library's model in float64, all its weights random."""
    model = build(spec_of(*sizes)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=torch.float64) * p.shape[-1] ** -0.5)
    return model


def _mixer_loop(x, weights, d, width):
    """The definition of `ByteMixer`, by the library's convolution."""
    x, g = (x @ weights["xg.weight"].T).chunk(2, dim=-1)
    y, _ = kernels.causal_conv_loop(x, weights["taps"])
    return (g * g.sigmoid() * y) @ weights["out.weight"].T


def _random_weights(module, rng):
    return {
        name: torch.randn(w.shape, generator=rng, dtype=torch.float64) * w.shape[-1] ** -0.5
        for name, w in module.state_dict().items()
    }


def _mixers(rng):
    for B, T, d, width in ((1, 1, 3, 8), (2, 5, 4, 3), (3, 11, 2, 8), (2, 5, 3, 8)):
        yield Case((normal(rng, B, T, d), _random_weights(ByteMixer(d, width), rng), d, width))


def _blocks(rng):
    for B, T, d in ((1, 1, 4), (2, 5, 3), (3, 11, 2)):
        yield Case((3 * normal(rng, B, T, d), _random_weights(Block(d), rng), d))


def _tables(rng):
    for B, K, T, rows, d in ((1, 1, 1, 5, 3), (2, 3, 7, 16, 4), (1, 2, 20, 300, 2)):
        hashes = torch.randint(-(1 << 62), 1 << 62, (B, K, T), generator=rng)
        yield Case((hashes, {"weight": normal(rng, K * rows, d)}, K, rows, d))


def _models(rng):
    for B, T, d, rows in ((1, 1, 4, 32), (2, 40, 6, 64), (1, 90, 4, 16)):
        sizes = (d, NGRAMS, CONTEXTS, rows, 64)
        ids = torch.randint(97, 100, (B, T), generator=rng)
        yield Case((ids, weights_for_model(_library(sizes, rng)), *sizes))


def _by_library(ids, weights, *sizes):
    model = build(spec_of(*sizes)).double()
    names = dict(zip(weights_for_model(model), model.state_dict(), strict=True))
    model.load_state_dict({names[name]: weight for name, weight in weights.items()})
    return model(ids).detach()


def _with(cls, **changes):
    """The class with some methods replaced: a mistake."""
    return type(cls.__name__, (cls,), changes)


def _conv(self, x, taps, gate=F.silu, swap=False):
    x, g = self.xg(x).chunk(2, dim=-1)
    if swap:
        x, g = g, x
    return self.out(gate(g) * taps(self.taps, x))


def _causal(taps, x):
    return kernels.causal_conv(x, taps)[0]


def _round(taps, x):
    return sum(w * x.roll(j, dims=1) for j, w in enumerate(taps))


def _looking_ahead(taps, x):
    return _causal(taps, x.flip(1)).flip(1)


def _votes(self, ids, found_only=True, normed=True):
    x, found = self.read(ids)
    for block in self.blocks:
        x = block(x)
    y = self.norm(x) if normed else x
    strength = self.strength(x if normed == "head only" else y)
    votes = strength * (found >= 0) if found_only else strength
    return self.head(y).scatter_add(2, found.clamp(min=0), votes)


def _finding_nothing(self, ids):
    x, found = Model.read(self, ids)
    return x, torch.full_like(found, -1)


def _without_ngrams(self, ids):
    x, found = Model.read(self, ids)
    return x - self.ngrams(hash_contexts(ids, self.contexts)[0]), found


EXERCISES = (
    Exercise(
        ByteMixer,
        use=use_module,
        truth=_mixer_loop,
        cases=_mixers,
        hints=(
            "`self.xg(x).chunk(2, dim=-1)` gives the channels to convolve, and those of the gate.",
            "`F.pad(x, (0, 0, j, 0))[:, :T]` is x, j steps late. Multiply it by taps[j].",
            "The output is `self.out(F.silu(g) * y)`.",
        ),
        mistakes={
            "It looks ahead: taps[j] belongs to the input j steps before.": _with(
                ByteMixer, forward=lambda self, x: _conv(self, x, _looking_ahead)
            ),
            "The taps are in the wrong order: taps[0] is that of the present.": _with(
                ByteMixer,
                forward=lambda self, x: _conv(self, x, lambda w, x: _causal(w.flip(0), x)),
            ),
            "The gate is `silu`, not a sigmoid.": _with(
                ByteMixer, forward=lambda self, x: _conv(self, x, _causal, torch.sigmoid)
            ),
            "The first half of xg is convolved, the second one is the gate.": _with(
                ByteMixer, forward=lambda self, x: _conv(self, x, _causal, swap=True)
            ),
            "The gate comes before `out`.": _with(
                ByteMixer,
                forward=lambda self, x: (
                    self.out(_causal(self.taps, self.xg(x).chunk(2, dim=-1)[0]))
                    * F.silu(self.xg(x).chunk(2, dim=-1)[1])
                ),
            ),
            "The end of the text comes in again at its beginning.": _with(
                ByteMixer, forward=lambda self, x: _conv(self, x, _round)
            ),
            "The gate is missing.": _with(
                ByteMixer, forward=lambda self, x: _conv(self, x, _causal, torch.ones_like)
            ),
        },
        time_axis=1,
    ),
    Exercise(
        Block,
        use=use_module,
        cases=_blocks,
        hints=(
            "There are two sums, and the second starts from the result of the first.",
            "A norm stands before each part, never on the skip itself.",
        ),
        mistakes={
            "The MLP's output has replaced x: its skip is missing.": _with(
                Block,
                forward=lambda self, x: Block.forward(self, x) - (x + self.mix(self.norm_mix(x))),
            ),
            "The MLP read what was there before the mixing.": _with(
                Block,
                forward=lambda self, x: (
                    x
                    + self.mix(self.norm_mix(x))
                    + self.down(self.up(self.norm_mlp(x)).relu().square())
                ),
            ),
            "The skip starts from the normed x; it should carry x itself.": _with(
                Block, forward=lambda self, x: Block.forward(self, x) - x + self.norm_mix(x)
            ),
            "Both skips start from the normed x; they should carry x itself.": _with(
                Block,
                forward=lambda self, x: (
                    (y := self.norm_mlp((n := self.norm_mix(x)) + self.mix(n)))
                    + self.down(self.up(y).relu().square())
                ),
            ),
            "First relu, then the square.": _with(
                Block,
                forward=lambda self, x: (
                    (y := x + self.mix(self.norm_mix(x)))
                    + self.down(self.up(self.norm_mlp(y)).square())
                ),
            ),
            "The nonlinearity is the square of relu, not relu.": _with(
                Block,
                forward=lambda self, x: (
                    (y := x + self.mix(self.norm_mix(x)))
                    + self.down(self.up(self.norm_mlp(y)).relu())
                ),
            ),
        },
        time_axis=1,
    ),
    Exercise(
        Tables,
        use=use_module,
        cases=_tables,
        hints=(
            "`to_rows(hashes, self.rows)` are the rows, each counted within its own table.",
            "Table k begins at row k * rows of the weight.",
            "`super().forward(rows)` has the shape (B, tables, T, D).",
        ),
        mistakes={
            "All contexts read the first table.": _with(
                Tables,
                forward=lambda self, hashes: F.embedding(
                    to_rows(hashes, self.rows), self.weight
                ).sum(dim=1),
            ),
            "The rows are summed, not averaged.": _with(
                Tables, forward=lambda self, hashes: Tables.forward(self, hashes) / hashes.shape[1]
            ),
            "Only the first context was used.": _with(
                Tables, forward=lambda self, hashes: Tables.forward(self, hashes[:, :1])
            ),
        },
    ),
    Exercise(
        Model,
        use=use_module,
        truth=_by_library,
        cases=_models,
        hints=(
            "`read` returns the sum of three embeddings, and the ids that were found.",
            "The norm comes after the blocks; head and strength both read what it returns.",
            "`scatter_add(2, found.clamp(min=0), votes)` adds each vote to the logit of its id.",
        ),
        mistakes={
            "The votes are missing.": _with(Model, read=_finding_nothing),
            "Where nothing was found, a vote went to byte 0.": _with(
                Model, forward=lambda self, ids: _votes(self, ids, found_only=False)
            ),
            "`strength` reads what the last norm returns, as `head` does.": _with(
                Model, forward=lambda self, ids: _votes(self, ids, normed="head only")
            ),
            "The last norm is missing.": _with(
                Model, forward=lambda self, ids: _votes(self, ids, normed=False)
            ),
            "The n-grams are missing from the embedding.": _with(Model, read=_without_ngrams),
        },
        time_axis=1,
    ),
)
