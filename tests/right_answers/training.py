"""Right answers to the exercises of lesson 09."""

import math

import torch


def windows_by_index(data, starts, window):
    places = starts[:, None] + torch.arange(window)
    return data[places], data[places + 1]


def windows_by_loop(data, starts, window):
    inputs = [[data[s + i].item() for i in range(window)] for s in starts]
    targets = [[data[s + i + 1].item() for i in range(window)] for s in starts]
    return torch.tensor(inputs), torch.tensor(targets)


def clip_by_division(gradient, most):
    return gradient / max(1.0, gradient.norm().item() / most)


def clip_by_torch(gradient, most):
    parameter = torch.nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient.clone()
    norm = gradient.norm().item()
    return parameter.grad if norm <= most else parameter.grad * most / norm


def unigram_by_dict(train, valid):
    counts = dict.fromkeys(range(256), 1)
    for byte in train.tolist():
        counts[byte] += 1
    total = len(train) + 256
    return sum(-math.log2(counts[byte] / total) for byte in valid.tolist()) / len(valid)


def unigram_by_cross_entropy(train, valid):
    logits = (torch.bincount(train, minlength=256).double() + 1.0).log().expand(len(valid), -1)
    return torch.nn.functional.cross_entropy(logits, valid).item() / math.log(2)


ANSWERS = {
    "windows": (windows_by_index, windows_by_loop),
    "clip": (clip_by_division, clip_by_torch),
    "unigram": (unigram_by_dict, unigram_by_cross_entropy),
}
