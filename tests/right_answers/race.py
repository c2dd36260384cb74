"""Right answers to the exercises of lesson 11."""

import math
import statistics

import torch


def bits_by_running_totals(windows):
    total = sum(losses.sum() for losses in windows)
    return total / sum(len(losses) for losses in windows) / math.log(2)


def bits_weighted_by_length(windows):
    lengths = torch.tensor([len(losses) for losses in windows], dtype=torch.float64)
    means = torch.stack([losses.mean() for losses in windows])
    return float((means * lengths).sum() / lengths.sum() * math.log2(math.e))


def unread_row_by_row(ids, blank):
    rows = []
    for t in range(len(ids)):
        row = ids.clone()
        row[t + 1 :] = blank
        rows.append(row)
    return torch.stack(rows)


def unread_by_comparing_places(ids, blank):
    place = torch.arange(len(ids))
    return ids.expand(len(ids), -1).masked_fill(place > place[:, None], blank)


def verdict_by_statistics(model, control):
    if len(model) == 1:
        return "too close"
    gaps = sorted(c - m for m, c in zip(model, control, strict=True))
    mean, luck = statistics.fmean(gaps), gaps[-1] - gaps[0]
    return "ahead" if mean > luck else "behind" if mean < -luck else "too close"


def verdict_with_tensors(model, control):
    gaps = torch.tensor(control).double() - torch.tensor(model).double()
    if len(gaps) < 2 or gaps.mean().abs() <= gaps.max() - gaps.min():
        return "too close"
    return ("behind", "ahead")[int(gaps.mean() > 0)]


def void_by_cross_entropy(p, demanded):
    entropy = torch.distributions.Categorical(probs=p).entropy() / math.log(2)
    return entropy.item() > demanded


def void_by_xlogy(p, demanded):
    return -torch.special.xlogy(p, p).sum() / math.log(2) > demanded


ANSWERS = {
    "bits": (bits_by_running_totals, bits_weighted_by_length),
    "unread": (unread_row_by_row, unread_by_comparing_places),
    "verdict": (verdict_by_statistics, verdict_with_tensors),
    "void": (void_by_cross_entropy, void_by_xlogy),
}
