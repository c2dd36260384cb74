"""Exercises of lesson 10, Write with it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...exercise import Case, Exercise, normal, shaped


def temperature(logits, heat):
    """The chances of all ids at a temperature: (B,V) -> (B,V)."""
    return (logits / heat).softmax(dim=-1)


def _temperature_loop(logits, heat):
    """The definition of `temperature`, one number at a time."""
    rows = []
    for row in logits:
        weights = [torch.exp(logit / heat) for logit in row]
        rows.append(torch.stack([weight / sum(weights) for weight in weights]))
    return torch.stack(rows)


def top_p(chances, p):
    """The fewest likeliest ids that together hold p, the others at zero: (B,V) -> (B,V)."""
    ranked, ids = chances.sort(dim=-1, descending=True)
    before = ranked.cumsum(dim=-1) - ranked  # held by all that are likelier
    kept = torch.zeros_like(chances).scatter(-1, ids, ranked * (before < p))
    return kept / kept.sum(dim=-1, keepdim=True)


def _top_p_loop(chances, p):
    """The definition of `top_p`, one id at a time."""
    kept = torch.zeros_like(chances)
    for row, chance in zip(kept, chances, strict=True):
        held = 0.0
        for i in sorted(range(len(chance)), key=lambda i: -chance[i].item()):
            if held < p:
                row[i] = chance[i]
                held += chance[i].item()
        row /= row.sum()
    return kept


def _in_order(chances, p):
    """The right chances, likeliest first, not put back to their ids."""
    return top_p(chances, p).sort(dim=-1, descending=True).values


def _unscaled(chances, p):
    """The right set, its chances as they were."""
    return torch.where(top_p(chances, p) > 0, chances, 0.0)


def stream(step, prompt, n):
    """The n ids that a greedy writer puts after a prompt; every id is read once: -> (n,)."""
    state = None
    for i in prompt:
        logits, state = step(i, state)
    written = []
    for _ in range(n):
        written.append(int(logits.argmax()))
        logits, state = step(written[-1], state)
    return torch.tensor(written)


def stream_by_rereading(step, prompt, n):
    """The same ids, rereading the whole text for each."""
    ids = list(prompt)
    for _ in range(n):
        state = None
        for i in ids:
            logits, state = step(i, state)
        ids.append(int(logits.argmax()))
    return torch.tensor(ids[len(prompt) :])


class _Step(NamedTuple):
    """A toy writer: each step turns its state, lets some of it fade, and adds what was read."""

    table: torch.Tensor  # (V,D)
    head: torch.Tensor  # (D,V)

    def __call__(self, i, state):
        """One id and the state before it, to logits (V,) and the state after it."""
        state = self.table[i] + (0.0 if state is None else 0.9 * state.roll(1))
        return state @ self.head, state


def _stream_stateless(step, prompt, n):
    """Each id from only the one before it."""
    written, last = [], prompt[-1]
    for _ in range(n):
        last = int(step(last, None)[0].argmax())
        written.append(last)
    return torch.tensor(written)


def _stream_stale(step, prompt, n):
    """The state of the prompt, used over and over."""
    logits, state = read(step, prompt)
    written = []
    for _ in range(n):
        written.append(int(logits.argmax()))
        logits, _ = step(written[-1], state)
    return torch.tensor(written)


def _stream_twice(step, prompt, n):
    """The last id of the prompt read twice."""
    _, state = read(step, prompt)
    last, written = prompt[-1], []
    for _ in range(n):
        logits, state = step(last, state)
        last = int(logits.argmax())
        written.append(last)
    return torch.tensor(written)


def read(step, prompt):
    """What a step gives after the whole prompt."""
    logits, state = None, None
    for i in prompt:
        logits, state = step(i, state)
    return logits, state


def _late_by_one(step, prompt, n):
    """The prompt's last id counted as written."""
    return torch.cat((torch.tensor(prompt[-1:]), stream(step, prompt, n)))[:n]


def toy(rng, V, D):
    return _Step(normal(rng, V, D), normal(rng, D, V))


def _chances_and_shares(rng):
    for B, V, p in ((2, 17, 0.8), (1, 1, 0.5), (1, 5, 0.01), (3, 5, 1.0), (2, 256, 0.95)):
        yield Case((normal(rng, B, V).softmax(dim=-1), p))


def _prompts(rng):
    for V, D, length, n in ((13, 6, 4, 9), (5, 3, 1, 1), (7, 4, 3, 2), (31, 9, 1, 20)):
        yield Case((toy(rng, V, D), [i % V for i in range(3, 3 + length)], n))


def _kept_where(chances, rule, descending=True):
    ranked, ids = chances.sort(dim=-1, descending=descending)
    return _scaled(torch.zeros_like(chances).scatter(-1, ids, ranked * rule(ranked)))


def _scaled(kept):
    """Each row made to add up to 1."""
    return kept / kept.sum(dim=-1, keepdim=True)


def _unsorted_mask(chances, p):
    ranked = chances.sort(dim=-1, descending=True).values
    return _scaled(chances * (ranked.cumsum(dim=-1) - ranked < p))


EXERCISES = (
    Exercise(
        temperature,
        truth=_temperature_loop,
        cases=shaped(
            "B V, heat", (2, 5, 0.5), (1, 1, 2.0), (1, 3, 1.0), (3, 17, 0.1), (2, 256, 1.7)
        ),
        hints=(
            "The temperature acts on the logits, before they become probabilities.",
            "torch's softmax works along one axis: a row of chances adds up to 1.",
        ),
        mistakes={
            "That is the inverse: "
            "a high temperature must make the chances more equal.": lambda x, h: (x * h).softmax(
                dim=-1
            ),
            "The chances add up to 1 over the batch, not over the ids.": lambda logits, heat: (
                logits / heat
            ).softmax(dim=0),
            "The temperature has no effect: "
            "it must divide the logits, before the softmax.": lambda x, h: x.softmax(dim=-1),
            "Those are logits, not yet chances.": lambda logits, heat: logits / heat,
            "Divide the logits, not the chances, which then no longer add up to 1.": lambda x, h: (
                x.softmax(dim=-1) / h
            ),
            "Those are the logarithms of the chances.": lambda logits, heat: (
                logits / heat
            ).log_softmax(dim=-1),
        },
    ),
    Exercise(
        top_p,
        truth=_top_p_loop,
        cases=_chances_and_shares,
        hints=(
            "Sort the chances, likeliest first, and remember where each came from.",
            "An id is kept if those that are likelier hold less than p between them.",
            "scatter puts sorted values back to their ids; then each row is divided by its sum.",
        ),
        mistakes={
            "The id that crosses p belongs to the set: "
            "without it the set holds less than p.": lambda c, p: _kept_where(
                c, lambda r: r.cumsum(-1) <= p
            ),
            "That sorts the other way, and keeps the rarest ids.": lambda chances, p: _kept_where(
                chances, lambda r: r.cumsum(-1) - r < p, False
            ),
            "What is kept must be scaled to add up to 1 again.": _unscaled,
            "The mask is in sorted order; it must go back to the ids it belongs to.": lambda c, p: (
                _unsorted_mask(c, p)
            ),
            "The result is in sorted order; each chance must go back to its id.": _in_order,
            "Nothing is sorted: "
            "the sum must run from the likeliest id to the rarest.": lambda c, p: _scaled(
                c * (c.cumsum(-1) - c < p)
            ),
            "gather takes numbers from these places; scatter puts them there.": lambda chances, p: (
                _in_order(chances, p).gather(-1, (-chances).argsort(dim=-1))
            ),
            "Each row must add up to 1 by itself, not all of them together.": lambda chances, p: (
                _unscaled(chances, p) / _unscaled(chances, p).sum()
            ),
        },
    ),
    Exercise(
        stream,
        truth=stream_by_rereading,
        cases=_prompts,
        hints=(
            "Read the prompt first, id by id. The logits after its last id choose the first.",
            "Each round appends one id and reads that same id, with the state of the round before.",
        ),
        mistakes={
            "The state is not carried: each id knows only the one before it.": _stream_stateless,
            "The state is the prompt's for ever; "
            "what was written is never remembered.": _stream_stale,
            "The prompt's last id was read twice.": _stream_twice,
            "The prompt's last id is not a written one.": _late_by_one,
            "The first id was read, but not written down.": lambda step, prompt, n: stream(
                step, prompt, n + 1
            )[1:],
            "Only the last id of the prompt was read.": lambda step, prompt, n: stream(
                step, prompt[-1:], n
            ),
            "Only the ids that were written are asked for.": lambda step, prompt, n: torch.cat(
                (torch.tensor(prompt), stream(step, prompt, n))
            ),
            "All that is there is read again for each id.": stream_by_rereading,
        },
        steepest=1.2,
        # A sixteenth of the length, or an answer that rereads everything would take too long.
        sized=lambda T: (toy(torch.Generator().manual_seed(0), 7, 4), [1], T // 16),
    ),
)
