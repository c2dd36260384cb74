"""Right answers to the exercises of lesson 01."""

import torch


def mask_by_two_triangles(T, window):
    return torch.ones(T, T).tril().triu(1 - window).bool()


def mask_row_by_row(T, window):
    rows = [[i - window < j <= i for j in range(T)] for i in range(T)]
    return torch.tensor(rows)


def weights_without_the_softmax(q, k):
    scores = torch.einsum("bik,bjk->bij", q, k) * q.shape[-1] ** -0.5
    shares = (scores - scores.amax(-1, keepdim=True)).exp().tril()
    return shares / shares.sum(-1, keepdim=True)


def weights_row_by_row(q, k):
    T, rows = q.shape[1], []
    for t in range(T):
        score = (k[:, : t + 1] @ q[:, t, :, None])[..., 0] / q.shape[-1] ** 0.5
        rows.append(torch.nn.functional.pad(score.softmax(-1), (0, T - t - 1)))
    return torch.stack(rows, dim=1)


def merge_as_attention_over_two(o1, l1, o2, l2):
    scores = torch.stack((l1, l2), dim=1)
    o = (scores.softmax(1)[..., None] * torch.stack((o1, o2), dim=1)).sum(1)
    return o, scores.logsumexp(1)


def merge_with_the_largest_taken_away(o1, l1, o2, l2):
    most = torch.maximum(l1, l2)
    a, b = (l1 - most).exp()[:, None], (l2 - most).exp()[:, None]
    return (a * o1 + b * o2) / (a + b), most + (a + b).log()[:, 0]


ANSWERS = {
    "mask": (mask_by_two_triangles, mask_row_by_row),
    "weights": (weights_without_the_softmax, weights_row_by_row),
    "merge": (merge_as_attention_over_two, merge_with_the_largest_taken_away),
}
