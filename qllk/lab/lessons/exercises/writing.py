"""Exercises of lesson 10, Write with it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...exercise import Case, Exercise, normal


def top_p(probabilities, p):
    """The fewest likeliest ids that together hold p, the others at zero: (B,V) -> (B,V)."""
    ranked, ids = probabilities.sort(dim=-1, descending=True)
    before = ranked.cumsum(dim=-1) - ranked  # held by all that are likelier
    kept = torch.zeros_like(probabilities).scatter(-1, ids, ranked * (before < p))
    return kept / kept.sum(dim=-1, keepdim=True)


def _top_p_loop(probabilities, p):
    """The definition of `top_p`, one id at a time."""
    kept = torch.zeros_like(probabilities)
    for row, given in zip(kept, probabilities, strict=True):
        held = 0.0
        for i in sorted(range(len(given)), key=lambda i: -given[i].item()):
            if held < p:
                row[i] = given[i]
                held += given[i].item()
        row /= row.sum()
    return kept


def _in_order(probabilities, p):
    """The right probabilities, likeliest first, not put back to their ids."""
    return top_p(probabilities, p).sort(dim=-1, descending=True).values


def _unscaled(probabilities, p):
    """The right set, its probabilities as they were."""
    return torch.where(top_p(probabilities, p) > 0, probabilities, 0.0)


def stream(run, prompt, n, choose):
    """The n ids that a writer puts after a prompt; every id is read once: -> (n,)."""
    logits, state = run(torch.tensor([prompt]), None)
    written = []
    for _ in range(n):
        written.append(choose(logits[0, -1]))
        logits, state = run(torch.tensor([written[-1:]]), state)
    return torch.tensor(written)


def stream_by_rereading(run, prompt, n, choose):
    """The same ids, rereading the whole text for each."""
    ids = list(prompt)
    for _ in range(n):
        logits, _ = run(torch.tensor([ids]), None)
        ids.append(choose(logits[0, -1]))
    return torch.tensor(ids[len(prompt) :])


def reach(run, ids):
    """How many of the last ids decide the logits after a text: the fewest that give the same."""
    wanted = run(ids, None)[0][0, -1]
    for n in range(1, ids.shape[1] + 1):
        if torch.allclose(run(ids[:, -n:], None)[0][0, -1], wanted, rtol=0, atol=1e-9):
            return n


class Toy(NamedTuple):
    """A toy model. What it carries is the last `kept` ids, and what followed each id last."""

    table: torch.Tensor  # (V,D)
    head: torch.Tensor  # (D,V)
    kept: int = 3
    recall: bool = True

    def __call__(self, ids, state):
        """Ids (1,T) and the state before them, to logits (1,T,V) and the state after them."""
        last, followed = state or ((), {})
        rows = []
        for i in ids[0].tolist():
            if self.recall and last:
                followed = followed | {last[-1]: i}
            last = (*last, i)[-self.kept :]
            x = sum(0.7**j * self.table[i].roll(j) for j, i in enumerate(reversed(last)))
            if i in followed:
                x = x + self.table[followed[i]].roll(-1)
            rows.append(x @ self.head)
        return torch.stack(rows)[None], (last, followed)


def likeliest(logits):
    return int(logits.argmax())


def second(logits):
    return int(logits.topk(2).indices[-1])


def _stream_stateless(run, prompt, n, choose):
    """Each id from only the one before it."""
    written, last = [], prompt[-1]
    for _ in range(n):
        last = choose(run(torch.tensor([[last]]), None)[0][0, -1])
        written.append(last)
    return torch.tensor(written)


def _stream_stale(run, prompt, n, choose):
    """The state of the prompt, used over and over."""
    logits, state = run(torch.tensor([prompt]), None)
    written = []
    for _ in range(n):
        written.append(choose(logits[0, -1]))
        logits, _ = run(torch.tensor([written[-1:]]), state)
    return torch.tensor(written)


def _stream_twice(run, prompt, n, choose):
    """The last id of the prompt read twice."""
    _, state = run(torch.tensor([prompt]), None)
    written = list(prompt)
    for _ in range(n):
        logits, state = run(torch.tensor([written[-1:]]), state)
        written.append(choose(logits[0, -1]))
    return torch.tensor(written[len(prompt) :])


def _late_by_one(run, prompt, n, choose):
    """The prompt's last id counted as written."""
    return torch.cat((torch.tensor(prompt[-1:]), stream(run, prompt, n, choose)))[:n]


def _stream_greedy(run, prompt, n, choose):
    """Every id the likeliest one."""
    return stream(run, prompt, n, likeliest)


def _shortest(ids, fits):
    """The smallest number of ids that fits, or 0."""
    return next((n for n in range(1, ids.shape[1] + 1) if fits(n)), 0)


def _last(run, ids, state=None):
    """The logits after the ids."""
    return run(ids, state)[0][0, -1]


def _equal(first, second):
    return torch.allclose(first, second, rtol=0, atol=1e-9)


def _reach_of_choices(run, ids):
    """Until the likeliest id is the same."""
    wanted = likeliest(_last(run, ids))
    return _shortest(ids, lambda n: likeliest(_last(run, ids[:, -n:])) == wanted)


def _reach_of_first_ids(run, ids):
    """The first ids of the text instead of the last."""
    wanted = _last(run, ids)
    return _shortest(ids, lambda n: _equal(_last(run, ids[:, :n]), wanted))


def _reach_with_state(run, ids):
    """Each try reads on from the state of the whole text."""
    logits, state = run(ids, None)
    return _shortest(ids, lambda n: _equal(_last(run, ids[:, -n:], state), logits[0, -1]))


def toy(rng, V, D, *options):
    return Toy(normal(rng, V, D), normal(rng, D, V), *options)


def _probabilities_and_shares(rng):
    for B, V, p in ((2, 17, 0.8), (1, 1, 0.5), (1, 5, 0.01), (3, 5, 1.0), (2, 256, 0.95)):
        yield Case((normal(rng, B, V).softmax(dim=-1), p))


def _prompts(rng):
    for V, D, length, n in ((13, 6, 4, 9), (5, 3, 1, 1), (7, 4, 3, 2), (31, 9, 1, 20)):
        choose = second if V == 7 else likeliest
        yield Case((toy(rng, V, D), [i % V for i in range(3, 3 + length)], n, choose))


def _texts(rng):
    """A window alone; a context that came before, near and far; a text of one id."""
    yield Case((toy(rng, 17, 6, 5, False), torch.arange(7)[None]))
    yield Case((toy(rng, 31, 6, 2), torch.tensor([[9, 4, 8, 5, 8, 4]])))
    yield Case((toy(rng, 31, 6, 5), torch.tensor([[4, *range(5, 30), 4]])))
    yield Case((toy(rng, 11, 6, 4), torch.tensor([[7]])))


def _kept_where(probabilities, rule, descending=True):
    ranked, ids = probabilities.sort(dim=-1, descending=descending)
    return _scaled(torch.zeros_like(probabilities).scatter(-1, ids, ranked * rule(ranked)))


def _scaled(kept):
    """Each row made to add up to 1."""
    return kept / kept.sum(dim=-1, keepdim=True)


def _unsorted_mask(probabilities, p):
    ranked = probabilities.sort(dim=-1, descending=True).values
    return _scaled(probabilities * (ranked.cumsum(dim=-1) - ranked < p))


EXERCISES = (
    Exercise(
        stream,
        truth=stream_by_rereading,
        cases=_prompts,
        hints=(
            "Read the prompt in one piece. The logits after its last id choose the first new one.",
            "Each round appends one id and reads that same id, with the state of the round before.",
        ),
        mistakes={
            "The state is not carried: each id knows only the one before it.": _stream_stateless,
            "The state is the prompt's for ever; "
            "what was written is never remembered.": _stream_stale,
            "The prompt's last id was read twice.": _stream_twice,
            "The prompt's last id is not a written one.": _late_by_one,
            "The first id was read, but not written down.": lambda run, prompt, n, choose: stream(
                run, prompt, n + 1, choose
            )[1:],
            "Only the last id of the prompt was read.": lambda run, prompt, n, choose: stream(
                run, prompt[-1:], n, choose
            ),
            "It always takes the likeliest id; `choose` decides which one.": _stream_greedy,
            "Only the ids that were written are asked for.": lambda run, prompt, n, choose: (
                torch.cat((torch.tensor(prompt), stream(run, prompt, n, choose)))
            ),
            "All that is there is read again for each id.": stream_by_rereading,
        },
        steepest=1.2,
        # A sixteenth of the length, or an answer that rereads everything would take too long.
        sized=lambda T: (toy(torch.Generator().manual_seed(0), 7, 4), [1], T // 16, likeliest),
    ),
    Exercise(
        top_p,
        truth=_top_p_loop,
        cases=_probabilities_and_shares,
        hints=(
            "Sort the probabilities, likeliest first, and remember where each came from.",
            "An id is kept if those that are likelier hold less than p between them.",
            "scatter puts sorted values back to their ids; then each row is divided by its sum.",
        ),
        mistakes={
            "The id that crosses p belongs to the set: "
            "without it the set holds less than p.": lambda c, p: _kept_where(
                c, lambda r: r.cumsum(-1) <= p
            ),
            "That sorts the other way, and keeps the rarest ids.": lambda probabilities, p: (
                _kept_where(probabilities, lambda r: r.cumsum(-1) - r < p, False)
            ),
            "What is kept must be scaled to add up to 1 again.": _unscaled,
            "The mask is in sorted order; it must go back to the ids it belongs to.": lambda c, p: (
                _unsorted_mask(c, p)
            ),
            "The result is in sorted order; each probability must go back to its id.": _in_order,
            "Nothing is sorted: "
            "the sum must run from the likeliest id to the rarest.": lambda c, p: _scaled(
                c * (c.cumsum(-1) - c < p)
            ),
            "gather takes numbers from these places; scatter puts them there.": lambda c, p: (
                _in_order(c, p).gather(-1, (-c).argsort(dim=-1))
            ),
            "Each row must add up to 1 by itself, not all of them together.": lambda c, p: (
                _unscaled(c, p) / _unscaled(c, p).sum()
            ),
        },
    ),
    Exercise(
        reach,
        cases=_texts,
        hints=(
            "`run(ids, None)[0][0, -1]` are the logits after the whole text.",
            "Read the last 1, 2, 3, … ids, each time from no state, until the logits are equal.",
            "Equal means every logit, up to rounding: `torch.allclose(a, b, rtol=0, atol=1e-9)`.",
        ),
        mistakes={
            "The id that makes the difference counts as well.": lambda run, ids: (
                reach(run, ids) - 1
            ),
            "The same favourite is not enough; all logits must be equal.": _reach_of_choices,
            "Those are the first ids of the text, not the last.": _reach_of_first_ids,
            "Each try must start from no state, or it knows the text already.": _reach_with_state,
            "That is how many ids can be left out.": lambda run, ids: (
                ids.shape[1] - reach(run, ids)
            ),
        },
    ),
)
