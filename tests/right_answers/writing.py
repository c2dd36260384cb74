"""Right answers to the exercises of lesson 10."""

import torch


def top_p_by_threshold(probabilities, p):
    rows = []
    for row in probabilities:
        ranked = row.sort(descending=True).values
        count = int((ranked.cumsum(0) - ranked < p).sum())
        row = torch.where(row >= ranked[count - 1], row, 0.0)
        rows.append(row / row.sum())
    return torch.stack(rows)


def top_p_by_ranks(probabilities, p):
    order = probabilities.argsort(-1, descending=True)
    ranked = probabilities.gather(-1, order)
    ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= p, 0.0)
    return (ranked / ranked.sum(-1, keepdim=True)).gather(-1, order.argsort(-1))


def stream_with_a_generator(run, prompt, n, choose):
    def ids():
        logits, state = run(torch.tensor([prompt]), None)
        while True:
            i = choose(logits[0, -1])
            yield i
            logits, state = run(torch.tensor([[i]]), state)

    return torch.tensor([i for i, _ in zip(ids(), range(n), strict=False)])


def stream_reading_id_by_id(run, prompt, n, choose):
    state, written, waiting = None, [], list(prompt)
    while len(written) < n:
        for i in waiting:
            logits, state = run(torch.tensor([[i]]), state)
        waiting = [choose(logits[0, 0])]
        written += waiting
    return torch.tensor(written)


def reach_from_the_far_end(run, ids):
    wanted = run(ids, None)[0][0, -1]
    n = ids.shape[1]
    for shorter in range(n - 1, 0, -1):
        if (run(ids[:, -shorter:], None)[0][0, -1] - wanted).abs().max() < 1e-9:
            n = shorter
    return n


def reach_as_a_tensor(run, ids):
    (wanted, _), T = run(ids, None), ids.shape[1]
    tails = [run(ids[:, T - n :], None)[0][0, -1] for n in range(1, T + 1)]
    equal = [(tail - wanted[0, -1]).abs().max() < 1e-9 for tail in tails]
    return torch.stack(equal).double().argmax() + 1


ANSWERS = {
    "stream": (stream_with_a_generator, stream_reading_id_by_id),
    "top_p": (top_p_by_threshold, top_p_by_ranks),
    "reach": (reach_from_the_far_end, reach_as_a_tensor),
}
