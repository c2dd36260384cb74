"""Lesson 05, Fold bytes into patches."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn
from torch.nn.functional import pad

from ... import probes
from ...model.families import build
from ...spec import Patch, Spec
from ...study.figures import Heat, Note
from ...text import objectives, windows
from ..check import (
    SEES_THE_FUTURE,
    TOO_STEEP,
    WRONG_KIND,
    WRONG_VALUES,
    Case,
    Exercise,
    Mistake,
    normal,
)
from ..explore import Explorer, choice, slider, switch
from ..show import TEXT

SIZES = [1, 2, 4, 8]
IN_PLACE, BY_TARGET = "in place", "by target"
ALONE, LOCAL = 1, 8  # bytes that a byte layer sees: its own, or those just before it as well


# ---------------------------------------------------------------- exercises


def fold(x, weight):
    """A strided convolution as one product: x (B,T,D), weight (E,D,R) -> (B,T//R,E)."""
    B, T, D = x.shape
    E, _, R = weight.shape
    P = T // R
    side_by_side = x[:, : P * R].reshape(B, P, R * D)
    matrix = weight.transpose(1, 2).reshape(E, R * D)  # places first, as the bytes lie
    return side_by_side @ matrix.T


def fold_loop(x, weight):
    """The definition, a byte at a time."""
    B, T, _ = x.shape
    E, _, R = weight.shape
    patches = torch.zeros(B, T // R, E, dtype=x.dtype)
    for t in range(T // R * R):
        patches[:, t // R] += x[:, t] @ weight[:, :, t % R].T
    return patches


def hint_index(t, R):
    """Which complete patch, and which of its R hints, serves the logit at t; -1 if there is none.

    It predicts byte t + 1, so that byte's place is what counts.
    """
    return (t + 1) // R - 1, (t + 1) % R


def hint_index_loop(t, R):
    """The definition: read the bytes 0 … t, and count."""
    complete, loose = -1, 0
    for _ in range(t + 1):
        loose += 1
        if loose == R:
            complete, loose = complete + 1, 0
    return complete, loose


def shift(x, R):
    """At each position the mean of the newest complete patch, for x (B,T,D); zero before it."""
    B, T, D = x.shape
    P = T // R
    means = x[:, : P * R].reshape(B, P, R, D).mean(dim=2)
    means = torch.cat((torch.zeros(B, 1, D, dtype=x.dtype), means), dim=1)
    complete = (torch.arange(T) + 1) // R  # patches complete once byte t is read
    return means[:, complete]


def shift_loop(x, R):
    """The definition, a position at a time."""
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        end = (t + 1) // R * R  # bytes in complete patches
        if end:
            y[:, t] = x[:, end - R : end].mean(dim=1)
    return y


def laid(x, R, late):
    """Means laid onto their own bytes, `late` positions later; zeros elsewhere."""
    B, T, D = x.shape
    P = T // R
    in_place = x[:, : P * R].reshape(B, P, R, D).mean(dim=2).repeat_interleave(R, dim=1)
    return pad(in_place, (0, 0, late, T))[:, :T]


def by_a_table(x, R):
    """Right, with one weight for every pair of positions."""
    t = torch.arange(x.shape[1])
    end = (t + 1) // R * R
    weights = (t >= end[:, None] - R) & (t < end[:, None])  # (T,T)
    return weights.to(x.dtype) @ x / R


def foldable(rng):
    for B, T, D, E, R in ((1, 8, 3, 5, 4), (2, 16, 2, 5, 8), (1, 1, 3, 3, 8), (3, 11, 1, 4, 3)):
        yield Case((normal(rng, B, T, D), normal(rng, E, D, R)))
    yield Case((normal(rng, 2, 7, 3), normal(rng, 2, 3, 1)))


def places(rng):
    for t, R in ((0, 8), (6, 8), (7, 8), (8, 8), (4, 1), (13, 3), (14, 3)):
        yield Case((t, R))


def texts(rng):
    for B, T, D, R in ((1, 8, 2, 4), (2, 16, 3, 8), (1, 1, 2, 1), (1, 1, 3, 4), (3, 11, 2, 3)):
        yield Case((normal(rng, B, T, D), R))
    yield Case((normal(rng, 2, 7, 1), 1))


EXERCISES = (
    Exercise(
        name="patches.fold",
        difficulty=2,
        minutes=8,
        answer=fold,
        truth=fold_loop,
        cases=foldable,
        hints=(
            "Cut off the bytes of the unfinished patch, then lay R vectors side by side.",
            "A row of yours runs over places, then channels. Over what does weight[e] run first?",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "The weight runs over channels, then places; the bytes lie the other way round.",
                lambda x, w: cut(x, w.shape[2]).flatten(2) @ w.flatten(1).T,
            ),
            Mistake(
                WRONG_VALUES,
                "The kernel was turned round; torch's Conv1d reads it forwards.",
                lambda x, w: fold(x, w.flip(2)),
            ),
            Mistake(
                WRONG_VALUES,
                "Only the last byte of each patch was used.",
                lambda x, w: cut(x, w.shape[2])[:, :, -1] @ w[:, :, -1].T,
            ),
            Mistake(
                WRONG_VALUES,
                "Every place was treated alike: that is a mean, and order is lost.",
                lambda x, w: cut(x, w.shape[2]).mean(dim=2) @ w.sum(dim=2).T,
            ),
            Mistake(
                WRONG_VALUES,
                "The first bytes were left out; the unfinished patch is at the end.",
                lambda x, w: fold(x[:, x.shape[1] % w.shape[2] :], w),
            ),
            Mistake(
                WRONG_KIND,
                "The unfinished patch was filled up; it has to wait.",
                lambda x, w: fold(pad(x, (0, 0, 0, -x.shape[1] % w.shape[2])), w),
            ),
        ),
    ),
    Exercise(
        name="patches.hint_index",
        difficulty=2,
        minutes=6,
        answer=hint_index,
        truth=hint_index_loop,
        cases=places,
        hints=(
            "The logit at t is about byte t + 1. Find the patch and the place of that byte.",
            "The patch of byte t + 1 holds byte t + 1. Which is the newest one that does not?",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "That is where byte t lies: its patch still holds bytes to come.",
                lambda t, R: (t // R, t % R),
            ),
            Mistake(
                WRONG_VALUES,
                "That patch holds byte t + 1 itself: the leak.",
                lambda t, R: ((t + 1) // R, (t + 1) % R),
            ),
            Mistake(
                WRONG_VALUES,
                "Off by one: the logit at t is about byte t + 1.",
                lambda t, R: (t // R - 1, t % R),
            ),
            Mistake(
                WRONG_VALUES,
                "One patch too old: at its last byte a patch is complete.",
                lambda t, R: (t // R - 1, (t + 1) % R),
            ),
            Mistake(
                WRONG_VALUES,
                "The two are swapped: first the patch, then the place.",
                lambda t, R: hint_index(t, R)[::-1],
            ),
        ),
    ),
    Exercise(
        name="patches.shift",
        difficulty=3,
        minutes=12,
        answer=shift,
        truth=shift_loop,
        cases=texts,
        hints=(
            "The mean of a patch may be read first at the patch's last byte.",
            "How many patches are complete once byte t is read? Count them for t = 0 … 2 R.",
            "With a row of zeros in front of the means, that count is the index.",
        ),
        mistakes=(
            Mistake(
                SEES_THE_FUTURE,
                "The means lie on their own bytes.",
                lambda x, R: laid(x, R, 0),
            ),
            Mistake(
                SEES_THE_FUTURE,
                "One place later is not enough: a patch is complete at its last byte.",
                lambda x, R: laid(x, R, min(1, R - 1)),
            ),
            Mistake(
                WRONG_VALUES,
                "One place too late: at its last byte a patch is complete.",
                lambda x, R: laid(x, R, R),
            ),
            Mistake(
                WRONG_VALUES,
                "That is the mean of all complete patches, not of the newest.",
                lambda x, R: by_all(x, R),
            ),
            Mistake(
                WRONG_VALUES,
                "That is the mean of the last R bytes, whether they fill a patch or not.",
                lambda x, R: pad(x, (0, 0, R - 1, 0)).unfold(1, R, 1).mean(dim=-1),
            ),
            Mistake(
                WRONG_VALUES,
                "That is the sum of a patch, not its mean.",
                lambda x, R: R * shift(x, R),
            ),
            Mistake(
                TOO_STEEP,
                "A table of all pairs of positions grows with the square of the length.",
                by_a_table,
            ),
        ),
        time_axis=1,
        steepest=1.1,
        sized=lambda T: (torch.zeros(1, T, 4, dtype=torch.float64), 8),
    ),
)


def cut(x, R):
    """x (B,T,D) -> (B,P,R,D), without the unfinished patch."""
    P = x.shape[1] // R
    return x[:, : P * R].unflatten(1, (P, R))


def by_all(x, R):
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        if end := (t + 1) // R * R:
            y[:, t] = x[:, :end].mean(dim=1)
    return y


# ---------------------------------------------------------------- noise


def learn(model, noise, steps, rate=1e-2):
    """Train on fresh windows of 64 bytes, eight a step; the loss of each step, in nats."""
    adam, losses = torch.optim.AdamW(model.parameters(), lr=rate), []
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        ids = windows.sample_windows(noise.train, 8, 64, generator)
        loss = objectives.token_losses(model(ids[:, :-1]), ids[:, 1:]).mean()
        adam.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - step / steps))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return losses


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
        mixers=(("conv", {"width": LOCAL if local else ALONE}),),
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
    letters = [chr(byte) if byte != ord(" ") else "_" for byte in TEXT]
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


def xray(size: int = 4, alignment: str = BY_TARGET, local: bool = False):
    """Who sees whom, for a patch size, an alignment, and byte layers that look back or do not."""
    seen = seen_by(size, alignment, local)
    title = f"patches of {size}, {alignment}, local decoder {'on' if local else 'off'}"
    verdict = "It cheats." if leaks(seen) else "It is honest."
    if not leaks(seen) and unseen(seen):
        verdict = "It is honest, but blind in places."
    return [sight(title, seen), Note(verdict, [counted(seen)])]


def widget() -> Explorer:
    """An X-ray of one small model, and of what could be built instead."""
    return Explorer(
        "Which of these models could you believe on noise, and which would also read all its text?",
        {
            "size": slider("patch size", SIZES, 4),
            "alignment": choice("alignment", [BY_TARGET, IN_PLACE]),
            "local": switch("local decoder"),
        },
        xray,
    )
