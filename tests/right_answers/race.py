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
    if len(model) == 1 or len(control) == 1:
        return "too close"
    gap = statistics.fmean(model) - statistics.fmean(control)
    luck = max(max(bits) - min(bits) for bits in (model, control))
    return "ahead" if gap < -luck else "behind" if gap > luck else "too close"


def verdict_with_tensors(model, control):
    model, control = torch.tensor(model), torch.tensor(control)
    luck = max(model.max() - model.min(), control.max() - control.min())
    gap = control.mean() - model.mean()
    if len(model) < 2 or len(control) < 2 or gap.abs() <= luck:
        return "too close"
    return ("behind", "ahead")[int(gap > 0)]


ANSWERS = {
    "bits": (bits_by_running_totals, bits_weighted_by_length),
    "unread": (unread_row_by_row, unread_by_comparing_places),
    "verdict": (verdict_by_statistics, verdict_with_tensors),
}
