"""Sampling from a model: one id at a time, at constant cost where the state is of constant size.

    sampler            the last logits (B,vocab) -> ids (B,)
                       greedy, sampler(…), penalize_repetition(sampler, …)
    to_probabilities   logits (…,vocab) -> what to draw from
                       probabilities(…)

`stream` calls the model once for each id. In `speculate` a draft proposes several ids, which the
model checks in one call; the ids have the same distribution. Both expect models in eval mode;
`generate` sets it itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_positive, check_range
from .families import ModelState, eval_mode

_Sampler = Callable[[Tensor], Tensor]


def stream(
    model: nn.Module, prompt: Tensor, sampler: _Sampler, state: ModelState | None = None
) -> Iterator[Tensor]:
    """Yield ids without end, each drawn by `sampler` from the last logits.

    The model reads every id once, since its state carries what came before. A module without `run`
    reads the whole text again for each id. `state` is the state after the text before the prompt;
    default: the text starts with the prompt.

    Shapes   prompt (B,T) ids, T >= 1  ->  yields (B,)
    """
    run = getattr(model, "run", None) or partial(_read_again, model)
    with torch.no_grad():
        logits, state = run(prompt, state)
    while True:
        ids = sampler(logits[:, -1])
        yield ids
        with torch.no_grad():
            logits, state = run(ids[:, None], state)


def _read_again(model, ids, before):
    """`run` of a module that has none: its state is the text itself."""
    text = ids if before is None else torch.cat((before, ids), dim=1)
    return model(text), text


def generate(
    model: nn.Module,
    prompt: bytes | str,
    length: int,
    sampler: _Sampler | None = None,
    tokenizer=None,
) -> bytes:
    """Return the text of the `length` ids that follow the prompt. The default sampler is `greedy`.

    Ids are bytes unless a tokenizer is given: an object with `encode`, `decode` and `vocab_size`.

    Raises   ValueError when the prompt is empty, the length is negative, or the tokenizer has more
             ids than the model
    """
    vocab_size = tokenizer.vocab_size if tokenizer else 256
    sampler = restrict_vocabulary(sampler or greedy, vocab_size)
    start = encode_prompt(model, prompt, tokenizer)
    with eval_mode(model):
        found = [int(id) for id in take_first(stream(model, start, sampler), length)]
    return decode_after(tokenizer, start[0].tolist(), found) if tokenizer else bytes(found)


def decode_after(tokenizer, before: list[int], ids: list[int]) -> bytes:
    """What ids add to the text of those before; by themselves, words would lose their spaces."""
    text, whole = tokenizer.decode(before), tokenizer.decode([*before, *ids])
    return whole.removeprefix(text) if whole.startswith(text) else tokenizer.decode(ids)


def encode_prompt(model: nn.Module, prompt: bytes | str, tokenizer=None) -> Tensor:
    """The prompt as ids (1,T) on the model's device.

    Raises   ValueError when it is empty, or the tokenizer has more ids than the model
    """
    spec = getattr(model, "spec", None)  # a module without one is trusted to have enough ids
    if tokenizer and spec and tokenizer.vocab_size > spec.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model {spec.vocab_size}; "
            "give the tokenizer that the model was trained with"
        )
    as_bytes = prompt.encode() if isinstance(prompt, str) else prompt
    ids = tokenizer.encode(prompt).tolist() if tokenizer else list(as_bytes)
    if not ids:
        raise ValueError("the prompt is empty; give at least one byte, for example a newline")
    return torch.tensor([ids], device=next(model.parameters()).device)


def positions_left(model: nn.Module, prompt: Tensor, length: int) -> int:
    """How many ids can follow the prompt: `length`, or fewer if the model's context ends earlier.

    The last id need not be read, so the context ends one id later than what the model reads.

    Raises   ValueError when the prompt is longer than the context
    """
    if (room := _room(model, None, prompt)) < 0:
        raise ValueError(
            f"the prompt has {prompt.shape[1]} ids, but the context of the model has only "
            f"{model.spec.context}; shorten the prompt"
        )
    return min(length, room + 1)


def _room(model, state: ModelState | None, unread: Tensor) -> float:
    """How many ids a model can read after the unread ones: infinitely many without a context."""
    if not (context := getattr(getattr(model, "spec", None), "context", None)):
        return math.inf
    return context - (state.t if state else 0) - unread.shape[1]


def take_first(ids: Iterable[Tensor], length: int) -> Iterator[Tensor]:
    """The first `length` ids of a stream.  Raises  ValueError when the length is negative"""
    if length < 0:
        raise ValueError(f"length must be 0 or more, got {length}")
    return (found for _, found in zip(range(length), ids, strict=False))


# ---------------------------------------------------------------- samplers


def greedy(logits: Tensor) -> Tensor:
    """The most probable id.  Shapes  (B,vocab) -> (B,)"""
    return logits.argmax(dim=-1)


def restrict_vocabulary(function: Callable[[Tensor], Tensor], vocab_size: int):
    """A sampler or a `to_probabilities` that never sees ids beyond the tokenizer's. Models may have
    more: special ids of their training, or padding of the vocabulary to a round number.
    """
    return lambda logits: function(logits[..., :vocab_size])


def probabilities(
    temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Callable[[Tensor], Tensor]:
    """A function from logits to probabilities: softmax(logits / temperature), truncated.

    It keeps all ids by default, or the `top_k` most probable, or the fewest most probable ids that
    together have at least the probability `top_p`. Given both, it keeps the smaller set. The kept
    probabilities are scaled to sum to 1. At temperature 0 only the most probable id is left.

    Shapes   logits (…,vocab) -> (…,vocab), float64 on the CPU, where ids are drawn
    Paper    top-k: Fan 2018, 1805.04833; top-p: Holtzman 2019, 1904.09751
    Raises   ValueError for a temperature below 0, a top_k below 1, or top_p outside (0, 1]
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, got {temperature}")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k must be a whole number, 1 or more, got {top_k!r}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie above 0 and at most at 1, got {top_p}")

    def to_probabilities(logits):
        logits = logits.double().cpu()
        if temperature == 0:
            return F.one_hot(greedy(logits), logits.shape[-1]).double()
        gaps = logits - logits.amax(dim=-1, keepdim=True)  # so that none overflows when divided
        ranked, ids = (gaps / temperature).softmax(dim=-1).sort(descending=True, stable=True)
        if ranked.isnan().any():
            raise ValueError(
                "the logits are not finite numbers, so nothing can be drawn from them; the weights "
                "of the model are damaged"
            )
        kept = torch.ones_like(ranked, dtype=torch.bool)
        if top_k is not None:
            kept[..., min(top_k, kept.shape[-1]) :] = False
        if top_p is not None and top_p < 1:  # at 1, rounding could cut off the rarest
            kept &= ranked.cumsum(dim=-1) - ranked < top_p
        ranked = ranked * kept
        return torch.zeros_like(ranked).scatter(-1, ids, ranked / ranked.sum(dim=-1, keepdim=True))

    return to_probabilities


def sampler(
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> _Sampler:
    """A sampler that draws from `probabilities(temperature, top_k, top_p)`.

    Raises   ValueError as `probabilities`
    """
    to_probabilities = probabilities(temperature, top_k, top_p)
    generator = _seeded_generator(seed)
    return lambda logits: _sample_ids(to_probabilities(logits), generator).to(logits.device)


def _sample_ids(weights: Tensor, generator: torch.Generator) -> Tensor:
    """One id for each row.  Shapes  weights (B,vocab) -> (B,)"""
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def _seeded_generator(seed):
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        check_range("seed", seed, int, 2**63 - 1)
        generator.manual_seed(seed)
    return generator


def penalize_repetition(sampler: _Sampler, penalty: float, seen: Tensor) -> _Sampler:
    """A sampler, for one text, that lowers the logits of ids which the text already contains.

        logit -> logit / penalty  where it is above 0,  logit * penalty  where it is not

    The paper always divides, which makes ids with logits below 0 more probable; this is Hugging
    Face's form. A penalty of 1 changes nothing, one below 1 rewards repetition.

    Shapes   seen (B,T) ids: the prompt. Ids that are sampled are added to it
    Paper    CTRL, Keskar 2019, 1909.05858, 4.1
    Raises   ValueError when the penalty is not a finite number above 0
    """
    if not 0 < penalty < math.inf:
        raise ValueError(
            f"penalty must be a finite number above 0, got {penalty}; 1 changes nothing"
        )
    contained = None  # (B,vocab) bool: which ids the text contains

    def penalized(logits):
        nonlocal contained
        if contained is None:
            contained = torch.zeros_like(logits, dtype=torch.bool).scatter(1, seen.long(), True)
        lowered = torch.where(logits > 0, logits / penalty, logits * penalty).nan_to_num()
        ids = sampler(torch.where(contained, lowered, logits))
        contained = contained.scatter(1, ids[:, None], True)
        return ids

    return penalized


# ---------------------------------------------------------------- speculative decoding


@torch.no_grad()
def speculate(
    model: nn.Module,
    draft: nn.Module,
    prompt: Tensor,
    to_probabilities: Callable[[Tensor], Tensor],
    ahead: int = 4,
    *,
    seed: int | None = None,
    states: tuple[ModelState | None, ModelState | None] = (None, None),
) -> Iterator[Tensor]:
    """Yield ids without end, drawn from `to_probabilities` of the model's logits.

    In each round `draft`, a smaller model, proposes `ahead` ids; the model reads them in one call;
    `_accept_proposals` keeps the first of them, up to the first it rejects, and adds one id. A
    better draft saves more calls; the distribution does not depend on it.

    No state has to be rolled back, since old states stay valid. The draft continues from its state
    at the last accepted id. The model continues from its state before the round, and reads the
    accepted ids again together with the next proposals.

    Shapes   prompt (1,T) ids, T >= 1  ->  yields (1,)
    State    `states` is where model and draft start, like the state of `stream`. Towards the end
             of a context fewer ids are proposed, and at its end none
    Cost     a round is `ahead` calls of the draft and one of the model, on at most 2 `ahead` ids,
             for 1 … ahead + 1 ids. After every `ahead` ids or more there is one more call of the
             model, to read accepted ids only: at worst 1 + 1/ahead calls per id. `ahead` states of
             the draft are stored
    Paper    Leviathan 2022, 2211.17192, algorithm 1; Chen 2023, 2302.01318, algorithm 2
    Raises   ValueError, at the first id, when the vocabularies differ, the prompt does not have one
             row, or `ahead` is below 1
    """
    check_positive("speculate", ahead=ahead)
    if model.spec.vocab_size != draft.spec.vocab_size:
        raise ValueError(
            f"the draft has {draft.spec.vocab_size} ids, the model {model.spec.vocab_size}; a "
            "draft must be trained on the same ids as the model"
        )
    if prompt.ndim != 2 or len(prompt) != 1:
        raise ValueError(
            f"speculate writes one row, of shape (1, time), got {tuple(prompt.shape)}; the rows of "
            "a batch would accept different numbers of ids, so call it for each row"
        )
    generator = _seeded_generator(seed)
    state, draft_state = states
    unread = draft_unread = prompt  # ids of the text that are not in the state yet
    while True:
        if unread.shape[1] > ahead:
            _, state = model.run(unread[:, :-1], state)
            unread = unread[:, -1:]
        room = min(_room(model, state, unread), _room(draft, draft_state, draft_unread) + 1)
        tried = max(0, min(ahead, room))
        proposals, weights, draft_states = _propose(
            draft, draft_unread, draft_state, to_probabilities, tried, generator
        )
        logits, after = model.run(torch.cat((unread, proposals), dim=1), state)
        p = to_probabilities(logits[0, -tried - 1 :])
        ids = _accept_proposals(proposals[0], p, torch.cat([*weights, 0 * p[:1]]), generator)[None]
        yield from ids[0, :, None]
        if ids.shape[1] > tried:  # all proposals were accepted
            state, unread = after, ids[:, -1:]
        else:
            unread = torch.cat((unread, ids), dim=1)
        if tried:
            read = min(ids.shape[1], tried) - 1  # of these ids, by the draft
            draft_state, draft_unread = draft_states[read], ids[:, read:]
        else:
            draft_unread = torch.cat((draft_unread, ids), dim=1)


def _propose(draft, ids, state, to_probabilities, count, generator):
    """The ids that the draft writes after `ids`, their probabilities, and its state at each.

    Shapes   ids (1,T)  ->  (1,count), and lists of `count` weights (1,vocab) and states
    """
    proposals, weights, states = [ids[:, :0]], [], []
    for _ in range(count):
        logits, state = draft.run(ids, state)
        weights.append(to_probabilities(logits[:, -1]))
        ids = _sample_ids(weights[-1], generator).to(ids.device)[:, None]
        proposals.append(ids)
        states.append(state)
    return torch.cat(proposals, dim=1), weights, states


def _accept_proposals(
    proposals: Tensor, p: Tensor, q: Tensor, generator: torch.Generator
) -> Tensor:
    """The accepted ones of A proposals and one more id: together a draw from p, for any q.

        proposal i is accepted, if all before it are, with probability  min(1, p_i(id) / q_i(id))
        the last id is drawn from  max(0, p_i - q_i)  at the first rejected i, else from  p_A

    Shapes   proposals (A,), p (A+1,vocab) of the model, q (A+1,vocab) of the draft, whose last row
             is zero, since nothing is proposed after the last  ->  (1 … A+1,)
    Paper    Leviathan 2022, 2211.17192, appendix A.1: why it is a draw from p
    """
    at = torch.arange(len(proposals)), proposals.cpu()
    u = torch.rand(len(proposals), dtype=p.dtype, generator=generator)
    accepted = int((u * q[at] < p[at]).cumprod(dim=0).sum())
    last = _sample_ids((p[accepted] - q[accepted]).clamp(min=0)[None], generator)
    return torch.cat((proposals[:accepted], last.to(proposals.device)))
