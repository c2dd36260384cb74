"""Right answers to the exercises of lesson 10."""

import torch


def temperature_by_exp(logits, heat):
    weights = ((logits - logits.amax(-1, keepdim=True)) / heat).exp()
    return weights / weights.sum(-1, keepdim=True)


def top_p_by_threshold(chances, p):
    rows = []
    for row in chances:
        ranked = row.sort(descending=True).values
        count = int((ranked.cumsum(0) - ranked < p).sum())
        row = torch.where(row >= ranked[count - 1], row, 0.0)
        rows.append(row / row.sum())
    return torch.stack(rows)


def top_p_by_ranks(chances, p):
    order = chances.argsort(-1, descending=True)
    ranked = chances.gather(-1, order)
    ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= p, 0.0)
    return (ranked / ranked.sum(-1, keepdim=True)).gather(-1, order.argsort(-1))


def stream_with_a_generator(step, prompt, n):
    def ids():
        state = None
        for i in prompt:
            logits, state = step(i, state)
        while True:
            i = int(logits.argmax())
            yield i
            logits, state = step(i, state)

    return torch.tensor([i for i, _ in zip(ids(), range(n), strict=False)])


def stream_reading_before_choosing(step, prompt, n):
    state, written, waiting = None, [], list(prompt)
    while len(written) < n:
        for i in waiting:
            logits, state = step(i, state)
        waiting = [int(logits.argmax())]
        written += waiting
    return torch.tensor(written)


ANSWERS = {
    "temperature": (temperature_by_exp, lambda x, t: torch.exp((x / t).log_softmax(-1))),
    "top_p": (top_p_by_threshold, top_p_by_ranks),
    "stream": (stream_with_a_generator, stream_reading_before_choosing),
}
