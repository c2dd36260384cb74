"""The four laws of everything that mixes over time, tried on a mixer of your own.

    print(check_laws(MyMixer))

A mixer is called as `y, state = mixer(x, state, mask)`, see `model.mixers`. The laws are those that
the tests of this library hold every mixer to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..model.families import eval_mode
from .inside import state_numbers, state_tensors

_T = 24  # steps of the text that the laws are tried on
_CUTS = ((1,) * _T, (_T - 1, 1), (1, 7, 13, 3))  # ways to read it in pieces
_TOLERANCE = 1e-8  # in float64, relative to the largest output


class Law(NamedTuple):
    """A law, whether the mixer keeps it, and what was found, in a sentence."""

    name: str
    holds: bool
    sentence: str

    def __str__(self) -> str:
        return f"{self.name} {'holds' if self.holds else 'IS BROKEN'}. {self.sentence}"


class Laws(tuple[Law, ...]):
    """The laws in their order: pieces, causality, rows, memory. Shown as one sentence each."""

    @property
    def hold(self) -> bool:
        """Whether the mixer keeps all of them."""
        return all(law.holds for law in self)

    def __repr__(self) -> str:
        return "\n".join(map(str, self))


def check_laws(mixer: nn.Module | Callable[[int], nn.Module], d_model: int = 16) -> Laws:
    """Try the four laws on a mixer, in float64, on a copy whose weights are moved off their start.

    pieces      reading the input in pieces, with the state carried, changes nothing; and reading on
                leaves the old state as it was
    causality   no output changes with a later input
    rows        a row of a batch gives what it gives alone
    memory      the state grows by no more with each further step

    Args     mixer     a module, or a class that is called as `mixer(d_model)`
    Raises   ValueError when the mixer does not map x (B,T,D) to (y (B,T,D), state)
    """
    made = mixer if isinstance(mixer, nn.Module) else mixer(d_model)
    made = copy.deepcopy(made).cpu().double()
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    with eval_mode(made):
        for weights in made.parameters():  # a gate or an output that starts at zero hides much
            weights += 0.1 * torch.randn(weights.shape, **draw)
        x = torch.randn(2, _T, d_model, **draw)
        laws = _pieces, _causality, _rows, _memory
        return Laws(Law(law.__name__[1:], *law(made, x)) for law in laws)


def _pieces(mixer, x):
    whole, _ = _mix(mixer, x)
    for cuts in _CUTS:
        state, outputs = None, []
        for piece in x.split(cuts, dim=1):
            y, after = _mix(mixer, piece, state)
            again, _ = _mix(mixer, piece, state)
            if _differ(y, again).any():
                return False, (
                    "Reading a piece twice from one state gives two outputs. A state must be a new "
                    "value: do not write into the old one, and keep nothing in the module."
                )
            outputs.append(y)
            state = after
        if (t := _first(_differ(whole, torch.cat(outputs, dim=1)))) is not None:
            return False, (
                f"In pieces of {_list(cuts)} steps the output at step {t} is another one than in "
                "one piece. The state must hold all that later steps need."
            )
    return True, f"{_T} steps give the same in one piece, one by one, and cut at odd places."


def _causality(mixer, x):
    whole, _ = _mix(mixer, x)
    for t in range(1, _T):
        changed = x.clone()
        changed[:, t:] = -1.5 * changed[:, t:] + 1.0
        if (early := _first(_differ(whole, _mix(mixer, changed)[0])[:t])) is not None:
            return False, f"The output at step {early} changes with the input at step {t}."
    return True, "No output changes with a later input."


def _rows(mixer, x):
    both, _ = _mix(mixer, x)
    for row in range(len(x)):
        alone, _ = _mix(mixer, x[row : row + 1])
        if _differ(both[row : row + 1], alone).any():
            return False, f"Row {row} gives another output in a batch than alone."
    return True, "A row gives the same in a batch and alone."


def _memory(mixer, x):
    steps = _T // 3, 2 * _T // 3, _T
    sizes = [state_numbers(_mix(mixer, x[:1, :step])[1]) for step in steps]
    found = f"The state holds {_list(sizes)} numbers after {_list(steps)} steps"
    # A state that keeps a block until it is complete grows by jumps, but not in the long run.
    if sizes[2] * steps[0] > sizes[0] * steps[2]:
        return False, f"{found}: it grows faster than the text."
    if sizes[2] == sizes[1]:
        stops = sizes[1] > sizes[0]
        return True, f"{found}: it stops growing." if stops else f"{found}: it does not grow."
    return True, f"{found}: it grows with the text, as a cache does."


def _mix(mixer, x, state=None):
    """The mixer's output and state, with their form checked."""
    found = mixer(x, state)
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], Tensor):
        raise ValueError(f"a mixer returns a pair, y and a state; got {type(found).__name__}")
    if found[0].shape != x.shape:
        raise ValueError(
            f"a mixer returns y in the shape of x, {tuple(x.shape)}; got {tuple(found[0].shape)}"
        )
    state_tensors(found[1])  # raises for what a state cannot hold
    return found


def _differ(a, b) -> Tensor:
    """At which steps two outputs differ by more than rounding, in any row.  Shapes  -> (T,)"""
    gaps = (a - b).abs().amax(dim=(0, 2))
    return ~(gaps <= _TOLERANCE * (1.0 + a.abs().max()))  # nan differs from everything


def _first(differ: Tensor) -> int | None:
    """The first step at which something is true, or None."""
    found = differ.nonzero()
    return int(found[0]) if len(found) else None


def _list(numbers) -> str:
    """Few numbers in a row, or what they all are."""
    if len(set(numbers)) == 1:
        return str(numbers[0])
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
