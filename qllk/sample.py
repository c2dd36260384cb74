"""Writing with a model: one byte at a time, at constant cost where the state is constant."""

from __future__ import annotations

from itertools import islice

import torch


def stream(model, prompt, pick):
    """Yield ids for ever. `pick` turns the newest logits (B,vocab) into ids (B,).

    Every byte is read once: the state carries what came before.

    Shapes   prompt (B,T) ids, T >= 1  ->  yields (B,)
    """
    with torch.no_grad():
        logits, state = model.run(prompt)
    while True:
        ids = pick(logits[:, -1])
        yield ids
        with torch.no_grad():
            logits, state = model.run(ids[:, None], state)


def generate(model, prompt: bytes | str, length: int, pick=None) -> bytes:
    """`length` bytes that follow the prompt; greedy unless another `pick` is given.

    Raises   ValueError when the prompt is empty or the length negative
    """
    prompt = prompt.encode() if isinstance(prompt, str) else bytes(prompt)
    if not prompt:
        raise ValueError("the prompt is empty; give at least one byte, for example a line end")
    if length < 0:
        raise ValueError(f"length must be 0 or more, got {length}")
    device = next(model.parameters()).device
    ids = torch.tensor([list(prompt)], device=device)
    was_training = model.training
    model.eval()
    try:
        return bytes(int(i) for i in islice(stream(model, ids, pick or greedy), length))
    finally:
        model.train(was_training)


def greedy(logits):
    """The likeliest id.  Shapes  (B,vocab) -> (B,)"""
    return logits.argmax(dim=-1)


def sampler(temperature=1.0, top_k=None, top_p=None, seed=None):
    """A `pick` that draws: from all, from the `top_k` likeliest, or from the likeliest that
    together hold the share `top_p` (the one that crosses it included). Given both, from the fewer.

    Paper    top-k: Fan 2018, 1805.04833; top-p: Holtzman 2019, 1904.09751
    Raises   ValueError for a temperature or top_k below what can be drawn, or top_p outside (0, 1]
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; greedy is the limit 0")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k must be a whole number, 1 or more, got {top_k!r}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie above 0 and at most at 1, got {top_p}")
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)

    def pick(logits):
        chances = (logits.double().cpu() / temperature).softmax(dim=-1)
        ranked, ids = chances.sort(dim=-1, descending=True, stable=True)
        keep = torch.ones_like(ranked, dtype=torch.bool)
        if top_k is not None:
            keep[:, top_k:] = False
        if top_p is not None and top_p < 1:  # at 1, rounding could cut the rarest off
            keep &= ranked.cumsum(dim=-1) - ranked < top_p
        drawn = torch.multinomial(ranked * keep, 1, generator=generator)
        return ids.gather(-1, drawn)[:, 0].to(logits.device)

    return pick
