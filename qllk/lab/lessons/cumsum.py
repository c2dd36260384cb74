"""Lesson 03, Keep a running sum."""

from __future__ import annotations

import torch

from ...model import kernels
from ...study.axes import BLUE
from ...study.figures import Box, Chart, Diagram, Heat
from ..explore import choice, explorer, slider
from ..show import TEXT, letters_of, tiny

_CHANNELS = 4
_HALF_LIFE = 2.0  # bytes, of the forgetting rule in the widget


# ---------------------------------------------------------------- pictures


def state_of_heads(d_model: int, heads: tuple[int, ...]) -> list[tuple[Heat, ...]]:
    """Which entries of a state of d_model x d_model numbers are kept, by the number of heads."""
    channels = [str(i) for i in range(d_model)]
    pictures = []
    for n in heads:
        head = torch.arange(d_model) * n // d_model  # of each channel
        kept = head[:, None] == head
        title = f"{n} head{'s' if n > 1 else ''}: S keeps {kept.sum()} of {kept.numel()}"
        pictures.append(Heat(title, kept.int().tolist(), channels, channels, said=title))
    return [tuple(pictures)]


def scan_tree(text: bytes = TEXT) -> Diagram:
    """How many bytes each sum of a scan has taken in, and the tree of sums below the last one."""
    counts, needed, boxes, arrows = torch.ones(len(text)), {len(text) - 1}, {}, []
    rounds, distance = [counts], 1
    while distance < len(text):
        counts = counts + torch.nn.functional.pad(counts, (distance, 0))[: len(text)]
        rounds.append(counts)
        distance *= 2
    for row in range(len(rounds) - 1, -1, -1):
        for t, said in enumerate(rounds[row].int().tolist()):
            colour = BLUE if t in needed else None
            boxes[f"{row} {t}"] = Box(str(said), t, row + 1, colour=colour)
        if row:
            distance //= 2
            pairs = [(t, s) for t in needed for s in (t - distance, t) if s >= 0]
            arrows += [(f"{row - 1} {s}", f"{row} {t}") for t, s in pairs]
            needed = {s for _, s in pairs}
    letters = {
        f"letter {t}": Box(sign, t, 0, framed=False) for t, sign in enumerate(letters_of(text))
    }
    title = f"how many bytes each sum holds, in {len(rounds) - 1} rounds"
    said = f"{title}: the last one {' '.join(str(int(c[-1])) for c in rounds)}."
    return Diagram(title, letters | boxes, sorted(arrows), said, down=True)


# ---------------------------------------------------------------- widget


@explorer(
    "Which byte changed the state most, and does the state ever come back?",
    steps=slider("bytes", list(range(1, len(TEXT) + 1))),
    rule=choice("rule", ["keep all", "forget half in 2 bytes"]),
)
def watch(steps: int = 4, rule: str = "keep all"):
    """The state after `steps` bytes of the course's string, and how it came to be."""
    _, q, k, v = tiny(_CHANNELS, 3, "q", "k", "v")
    decay = None
    if rule != "keep all":
        decay = torch.full((_CHANNELS,), -torch.log(torch.tensor(2.0)).item() / _HALF_LIFE)
    sums, _ = kernels.running_sum_loop(k * v, log_decay=decay)
    now = steps - 1
    table = Heat(
        title=f"byte {steps} of {len(TEXT)}: {chr(TEXT[now])!r}",
        rows=[x[0, now].tolist() for x in (k * v, sums, q * sums)],
        row_names=["k v, new", "S, kept", "q S, read"],
        column_names=[f"{i}" for i in range(_CHANNELS)],
        numbers=True,
        most=sums.abs().max().item(),
        said=f"After {steps} bytes S is {' '.join(f'{s:.2f}' for s in sums[0, now].tolist())}.",
    )
    path = {
        f"channel {c}": [(t + 1, sums[0, t, c].item()) for t in range(steps)]
        for c in range(_CHANNELS)
    }
    return [(table, Chart(path, "bytes read", "state S", log=""))]
