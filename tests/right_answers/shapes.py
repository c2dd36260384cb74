"""Right answers to the exercises of lesson 16."""

import re
from itertools import count, groupby

import torch
import torch.nn.functional as F

from qllk.model.masks import Mask


def cross_by_torch(q, k, v, text):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=text[:, None, None])


def cross_by_a_mask(q, k, v, text):
    table = Mask(causal=False, text=text).table(q.shape[2], k.shape[2], q.device)
    scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).exp() * table
    return scores @ v / scores.sum(dim=-1, keepdim=True)


def hide_by_indexing(ids, chosen, fate, other, mask):
    ids = ids.clone()
    ids[chosen & (fate < 0.8)] = mask
    swapped = chosen & (fate >= 0.8) & (fate < 0.9)
    ids[swapped] = other[swapped]
    return ids


def hide_by_arithmetic(ids, chosen, fate, other, mask):
    masked, swapped = chosen * (fate < 0.8), chosen * (fate >= 0.8) * (fate < 0.9)
    return ids + masked * (mask - ids) + swapped * (other - ids)


def spans_by_groups(words, lost):
    source = []
    for gone, group in groupby(zip(lost, words, strict=True), key=lambda pair: pair[0]):
        source += [None] if gone else [word for _, word in group]
    marks = count()
    return " ".join(f"<{next(marks)}>" if word is None else word for word in source)


def spans_by_replacing(words, lost):
    text = " ".join("_" if gone else word for word, gone in zip(words, lost, strict=True))
    marks = count()
    return re.sub(r"_(?: _)*", lambda _: f"<{next(marks)}>", text)


def seen_by_other_ids(model, source, ids):
    changed = [source.clone() for _ in range(source.shape[1])]
    for t, one in enumerate(changed):
        one[:, t] = 7 - one[:, t]
    return torch.tensor([bool((model(one, ids) != model(source, ids)).any()) for one in changed])


def seen_by_all_ids(model, source, ids):
    usual, seen = model(source, ids), torch.zeros(source.shape[1], dtype=torch.bool)
    for t in range(source.shape[1]):
        for id in range(8):
            changed = source.clone()
            changed[:, t] = id
            seen[t] |= (model(changed, ids) != usual).any()
    return seen


ANSWERS = {
    "cross": (cross_by_torch, cross_by_a_mask),
    "hide": (hide_by_indexing, hide_by_arithmetic),
    "spans": (spans_by_groups, spans_by_replacing),
    "source_seen": (seen_by_other_ids, seen_by_all_ids),
}
