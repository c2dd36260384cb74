"""Lesson 06, Fold bytes into patches."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn
from torch.nn.functional import pad

from ... import probes
from ...model.families import build
from ...spec import Patch, Spec
from ...study.axes import BLUE, ORANGE
from ...study.figures import Box, Diagram, Heat, Note
from ...text import objectives
from ...text.corpora import Corpus
from ...text.windows import sample_windows
from ..explore import choice, explorer, slider, switch
from ..minimize import minimize
from ..show import TEXT, letters_of
from .exercises.patches import hint_index

SIZES = [1, 2, 4, 8]
IN_PLACE, BY_TARGET = "in place", "by target"
_ALONE, _LOCAL = 1, 8  # bytes that a byte layer sees: its own, or those just before it as well


# ---------------------------------------------------------------- noise


def learn(model, text: Corpus, steps: int, lr: float = 1e-2) -> list[float]:
    """Train on fresh windows of 64 bytes, eight per step; the loss of each step, in nats."""
    generator = torch.Generator().manual_seed(1)

    def loss_of(step):
        ids = sample_windows(text.train, 8, 64, generator)
        return objectives.token_losses(model(ids[:, :-1]), ids[:, 1:]).mean()

    return minimize(model, loss_of, steps, lr)


def loss_when_hidden(model, text, window=64, size=8) -> float:
    """Nats per byte at the leaking offsets of each window's last patch, their targets unseen.

    Everything after the asking position is drawn anew, as it would be missing when writing.
    Shapes   text (n,) uint8
    """
    rows = torch.from_numpy(text[: len(text) // window * window].copy()).view(-1, window)
    generator, losses = torch.Generator().manual_seed(2), []
    for t in range(window - size, window - 1):
        covered = rows.clone()
        drawn = torch.randint(256, (len(rows), window - 1 - t), generator=generator)
        covered[:, t + 1 :] = drawn
        with torch.no_grad():
            logits = model(covered)[:, t : t + 1]
        losses.append(objectives.token_losses(logits, rows[:, t + 1 : t + 2]).mean().item())
    return sum(losses) / len(losses)


# ---------------------------------------------------------------- alignment


def timeline(size: int, text: bytes = TEXT) -> Diagram:
    """When each patch is complete, and at which positions its hints are read."""
    left = 2.6  # columns for the names of the rows
    letters = letters_of(text)
    said = {"position": [*map(str, range(len(text)))], "reads": letters, "predicts": letters[1:]}
    names = [*said, "patches", "hints"]
    boxes = {name: Box(name, 0, row, left, framed=False) for row, name in enumerate(names)}
    for row, texts in enumerate(said.values()):
        for t, letter in enumerate(texts):
            boxes[f"{row} {t}"] = Box(letter, left + t, row, framed=row > 0)
    arrows, served = [], []
    for i in range(len(text) // size):
        at = [t for t in range(len(text)) if hint_index(t, size)[0] == i]
        complete, colour = (i + 1) * size - 1, (BLUE, ORANGE)[i % 2]
        words = f"patch {i}, complete at {complete}"
        boxes[f"patch {i}"] = Box(words, left + i * size, 3, size, colour)
        words = f"hints of patch {i}" if len(at) == size else "…"
        boxes[f"hints {i}"] = Box(words, left + at[0], 4, len(at), colour)
        arrows.append((f"patch {i}", f"hints {i}"))
        served.append(f"patch {i} is complete at {complete} and read from {at[0]} to {at[-1]}")
    title = f"patches of {size}, aligned by target"
    return Diagram(title, boxes, arrows, f"{title}: {'; '.join(served)}.")


# ---------------------------------------------------------------- who sees whom


class InPlace(nn.Module):
    """A patch path whose hints are laid onto the bytes they were made of: the leak.

    Shapes   x (B,T,D), T a multiple of the path's size  ->  y (B,T,D)
    """

    def __init__(self, path):
        super().__init__()
        self.path = path

    def forward(self, x, state=None, mask=None):
        early = self.path.size - 1  # of a path aligned by target, read this much too soon
        y, state = self.path(pad(x, (0, 0, 0, early)), state, mask)
        return y[:, early:], state


@lru_cache
def seen_by(size: int, alignment: str, local: bool) -> torch.Tensor:
    """Who sees whom in a small model of two clocks.  Shapes  -> (16,16) bool"""
    spec = Spec(
        d_model=8,
        layers=2,
        mixers=(("conv", {"width": _LOCAL if local else _ALONE}),),
        patch=Patch(size=size, d_model=8, layers=1, mixers=(("cumsum", {}),)),
    )
    model = build(spec, seed=0).double()
    if alignment == IN_PLACE:
        model.body.path = InPlace(model.body.path)
    return probes.visibility(model, len(TEXT))


def sight(title: str, seen) -> Heat:
    """Who sees whom: blue the past, orange the future, full orange a position's own target.

    Shapes   seen (16,16) bool, a row for each position and a column for each byte of the text
    """
    ahead = seen.triu(1)
    colours = seen.double() - 1.3 * ahead.double()
    colours[ahead & torch.eye(len(seen)).roll(1, 1).bool()] = -1.0
    letters = letters_of(TEXT)
    return Heat(
        title=title,
        rows=colours.tolist(),
        row_names=[f"{t:2}, reads {letter}" for t, letter in enumerate(letters)],
        column_names=letters,
        most=1.0,
        said=f"{title}: {counted(seen)}",
    )


def leaks(seen) -> int:
    """How many positions see their own target, the byte after them."""
    return int(seen.diagonal(1).sum())


def unseen(seen) -> int:
    """How many pairs there are of a position and an earlier byte that it does not see."""
    return int((~seen).tril().sum())


def counted(seen) -> str:
    """The X-ray in words."""
    missed = f"an earlier byte is missed {n} times" if (n := unseen(seen)) else "nothing is missed"
    return f"{leaks(seen)} of {len(seen) - 1} positions see their own target; {missed}."


@explorer(
    "Which of these models could you believe on noise, and which would also read all its text?",
    size=slider("patch size", SIZES),
    alignment=choice("alignment", [BY_TARGET, IN_PLACE]),
    local=switch("local decoder"),
)
def xray(size: int = 4, alignment: str = BY_TARGET, local: bool = False):
    """Who sees whom, for a patch size, an alignment, and byte layers that look back or do not."""
    seen = seen_by(size, alignment, local)
    title = f"patches of {size}, {alignment}, local decoder {'on' if local else 'off'}"
    verdict = "It cheats." if leaks(seen) else "It is honest."
    if not leaks(seen) and unseen(seen):
        verdict = "It is honest, but blind in places."
    return [sight(title, seen), Note(verdict, [counted(seen)])]
