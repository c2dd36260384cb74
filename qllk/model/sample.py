"""Writing with a model: one id at a time, at constant cost where the state is constant.

    pick    newest logits (B,vocab) -> ids (B,)          greedy, sampler(…), penalised(pick, …)
    weigh   logits (…,vocab) -> what to draw with        chances(…)

`stream` picks one id for each call of the model. `speculate` lets a draft guess several, which the
model reads in one call, and yields ids of the same chances. Models must be in eval mode.
"""

from __future__ import annotations

from itertools import islice

import torch
import torch.nn.functional as F

from ..checks import check_positive
from .families import eval_mode


def stream(model, prompt, pick, state=None):
    """Yield ids for ever. `pick` turns the newest logits (B,vocab) into ids (B,).

    Every id is read once: the state carries what came before, also before the prompt.

    Shapes   prompt (B,T) ids, T >= 1  ->  yields (B,)
    """
    with torch.no_grad():
        logits, state = model.run(prompt, state)
    while True:
        ids = pick(logits[:, -1])
        yield ids
        with torch.no_grad():
            logits, state = model.run(ids[:, None], state)


def generate(model, prompt: bytes | str, length: int, pick=None, tokenizer=None) -> bytes:
    """The text of the `length` ids that follow the prompt; greedy unless another `pick` is given.

    Ids are bytes unless a tokenizer is given: an object with `encode`, `decode` and `vocab_size`.

    Raises   ValueError when the prompt is empty, the length negative, or the tokenizer has ids that
             the model has not
    """
    vocab_size = tokenizer.vocab_size if tokenizer else 256
    pick = restrict_vocabulary(pick or greedy, vocab_size)
    ids = stream(model, encode_prompt(model, prompt, tokenizer), pick)
    with eval_mode(model):
        found = [int(id) for id in take_first(ids, length)]
    return tokenizer.decode(found) if tokenizer else bytes(found)


def encode_prompt(model, prompt: bytes | str, tokenizer=None) -> torch.Tensor:
    """The prompt as ids (1,T) on the model's device.

    Raises   ValueError when it is empty, or the tokenizer has ids that the model has not
    """
    if tokenizer and tokenizer.vocab_size > model.spec.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model {model.spec.vocab_size}; "
            "give the tokenizer that the model was trained with"
        )
    as_bytes = prompt.encode() if isinstance(prompt, str) else prompt
    ids = tokenizer.encode(prompt).tolist() if tokenizer else list(as_bytes)
    if not ids:
        raise ValueError("the prompt is empty; give at least one byte, for example a line end")
    return torch.tensor([ids], device=next(model.parameters()).device)


def positions_left(model, prompt, length: int) -> int:
    """How many of `length` ids the model can write: learned positions end somewhere."""
    context = model.spec.context
    return min(length, max(0, context - prompt.shape[1])) if context else length


def take_first(ids, length: int):
    """The first `length` of a stream.  Raises  ValueError when the length is negative"""
    if length < 0:
        raise ValueError(f"length must be 0 or more, got {length}")
    return islice(ids, length)


# ---------------------------------------------------------------- picking


def greedy(logits):
    """The likeliest id.  Shapes  (B,vocab) -> (B,)"""
    return logits.argmax(dim=-1)


def restrict_vocabulary(choose, vocab_size: int):
    """A `pick` or `weigh` for which a model knows no ids but the tokenizer's. Some know more: marks
    of their training, or what fills their vocabulary up to a round number.
    """
    return lambda logits: choose(logits[..., :vocab_size])


def probabilities(temperature=1.0, top_k=None, top_p=None):
    """A `weigh`: the softmax of logits / temperature, cut off and scaled to the sum 1 again.

    What stays is all, or the `top_k` likeliest, or the likeliest that together hold the share
    `top_p` (the one that crosses it included); given both, the fewer. At temperature 0 only the
    likeliest stays.

    Shapes   logits (…,vocab) -> (…,vocab), float64 on the CPU, where they are drawn from
    Paper    top-k: Fan 2018, 1805.04833; top-p: Holtzman 2019, 1904.09751
    Raises   ValueError for a temperature or top_k below what can be drawn, or top_p outside (0, 1]
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, got {temperature}")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k must be a whole number, 1 or more, got {top_k!r}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie above 0 and at most at 1, got {top_p}")

    def weigh(logits):
        logits = logits.double().cpu()
        if temperature == 0:
            return F.one_hot(greedy(logits), logits.shape[-1]).double()
        ranked, ids = (logits / temperature).softmax(dim=-1).sort(descending=True, stable=True)
        keep = torch.ones_like(ranked, dtype=torch.bool)
        if top_k is not None:
            keep[..., top_k:] = False
        if top_p is not None and top_p < 1:  # at 1, rounding could cut the rarest off
            keep &= ranked.cumsum(dim=-1) - ranked < top_p
        kept = ranked * keep
        return torch.zeros_like(kept).scatter(-1, ids, kept / kept.sum(dim=-1, keepdim=True))

    return weigh


def sampler(temperature=1.0, top_k=None, top_p=None, seed=None):
    """A `pick` that draws, with the chances of `chances`.

    Raises   ValueError as `chances`
    """
    weigh, generator = probabilities(temperature, top_k, top_p), _seeded_generator(seed)
    return lambda logits: sample_ids(weigh(logits), generator).to(logits.device)


def sample_ids(weights, generator):
    """One id for each row.  Shapes  weights (B,vocab) -> (B,)"""
    return torch.multinomial(weights, 1, generator=generator)[:, 0]


def _seeded_generator(seed):
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    return generator


def penalize_repetition(pick, penalty: float, seen):
    """A `pick`, for one text, to which ids that the text has already look less likely.

        logit -> logit / penalty  where it is above 0,  logit * penalty  where it is not

    The paper divides alone, which makes ids with logits below 0 likelier; so this is Hugging Face's
    form. At 1 nothing changes, below 1 repetition is rewarded.

    Shapes   seen (B,T) ids: the prompt. What `pick` gives is added to them
    Paper    CTRL, Keskar 2019, 1909.05858, 4.1
    Raises   ValueError when the penalty is not above 0
    """
    if not penalty > 0:
        raise ValueError(f"penalty must be above 0, got {penalty}; 1 changes nothing")
    marks = None  # (B,vocab): which ids the text has

    def pick_anew(logits):
        nonlocal marks
        if marks is None:
            marks = torch.zeros_like(logits, dtype=torch.bool).scatter(1, seen.long(), True)
        lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
        ids = pick(torch.where(marks, lowered, logits))
        marks = marks.scatter(1, ids[:, None], True)
        return ids

    return pick_anew


# ---------------------------------------------------------------- speculating


@torch.no_grad()
def speculate(model, draft, prompt, weigh, ahead=4, *, seed=None, states=(None, None)):
    """Yield ids for ever, with the chances that `weigh` makes of the model's logits.

    A round: `draft`, a smaller model, guesses `ahead` ids; the model reads them in one call; it
    keeps those that `judged` lets stand and adds one. A better draft saves more calls and changes
    no chance.

    No state is rolled back, for the old ones stay valid. The draft goes on from the state in which
    it guessed the last id that stands. The model goes on from the state before the round, and reads
    what was kept once more, together with the next guesses.

    Shapes   prompt (1,T) ids, T >= 1  ->  yields (1,)
    State    `states` is where model and draft start, as the state of `stream`
    Cost     a round is `ahead` calls of the draft and one of the model, of 2 `ahead` ids at most,
             for 1 … ahead + 1 ids. After every `ahead` ids or more, a call of the model that only
             reads what was kept: at worst 1 + 1/ahead calls an id. Kept are `ahead` draft states
    Paper    Leviathan 2022, 2211.17192, algorithm 1; Chen 2023, 2302.01318, algorithm 2
    Raises   ValueError, when the first id is asked for, if the vocabularies differ, the prompt has
             not one row, or `ahead` is below 1. Learned positions must reach `ahead` ids further
             than the text
    """
    check_positive("speculate", ahead=ahead)
    if model.spec.vocab_size != draft.spec.vocab_size:
        raise ValueError(
            f"the draft has {draft.spec.vocab_size} ids, the model {model.spec.vocab_size}; a "
            "draft must be trained on the same ids as the model"
        )
    if prompt.ndim != 2 or len(prompt) != 1:
        raise ValueError(
            f"speculate writes one row, as shape (1, time), got {tuple(prompt.shape)}; rows keep "
            "different numbers of guesses, so call it for each"
        )
    generator = _seeded_generator(seed)
    state, draft_state = states
    unread = draft_unread = prompt  # ids of the text that are not in the state
    while True:
        if unread.shape[1] > ahead:
            _, state = model.run(unread[:, :-1], state)
            unread = unread[:, -1:]
        guesses, q, draft_states = _propose(
            draft, draft_unread, draft_state, weigh, ahead, generator
        )
        logits, after = model.run(torch.cat((unread, guesses), dim=1), state)
        ids = accept_proposals(guesses[0], weigh(logits[0, -ahead - 1 :]), q, generator)[None]
        yield from ids[0, :, None]
        if ids.shape[1] > ahead:  # all guesses stand
            state, unread = after, ids[:, -1:]
        else:
            unread = torch.cat((unread, ids), dim=1)
        read = min(ids.shape[1], ahead) - 1  # of these ids, by the draft
        draft_state, draft_unread = draft_states[read], ids[:, read:]


def _propose(draft, ids, state, weigh, ahead, generator):
    """What the draft writes after `ids`, with which chances, and its state at each guess.

    Shapes   ids (1,T)  ->  (1,ahead), (ahead,vocab), a list of `ahead` states
    """
    guesses, weights, states = [], [], []
    for _ in range(ahead):
        logits, state = draft.run(ids, state)
        weights.append(weigh(logits[:, -1]))
        ids = sample_ids(weights[-1], generator).to(ids.device)[:, None]
        guesses.append(ids)
        states.append(state)
    return torch.cat(guesses, dim=1), torch.cat(weights), states


def accept_proposals(guesses, p, q, generator):
    """The guesses that stand, and one id more: together a draw from p, whatever q is.

        guess i stands, if all before it do, with probability  min(1, p_i(guess) / q_i(guess))
        the id more is drawn from  max(0, p_i - q_i)  at the first i that falls, else from  p_A

    Shapes   guesses (A,), p (A+1,vocab) the model's chances, q (A,vocab) those of the guesses
             ->  (1 … A+1,)
    Paper    Leviathan 2022, 2211.17192, appendix A.1: why it is a draw from p
    """
    q = F.pad(q, (0, 0, 0, 1))  # after the last guess none was made
    at = torch.arange(len(guesses)), guesses.cpu()
    u = torch.rand(len(guesses), dtype=p.dtype, generator=generator)
    kept = int((u * q[at] < p[at]).cumprod(dim=0).sum())
    more = sample_ids((p[kept] - q[kept]).clamp(min=0)[None], generator)
    return torch.cat((guesses[:kept], more.to(guesses.device)))
