"""Lesson 05, Give the sum an address."""

from __future__ import annotations

import torch

from ...study.axes import BLUE
from ...study.figures import Box, Diagram, Heat, Note
from ..explore import choice, explorer, slider
from ..show import TEXT, letters_of
from .exercises.addresses import address

TEXTS = {
    "abracadabra": TEXT,
    "code": b"for a in b: a.add(b)\nfor b in c: b.add(c)",
    "a name": b"my_sum = my_sum + 1; return my_sum",
}


def paths_to_rows(n: int, rows: int, text: bytes = TEXT) -> Diagram:
    """Which row each position of a text chooses by its last n bytes, and what followed there."""
    letters = letters_of(text)
    chosen = address(torch.tensor(list(text)), n, rows).tolist()
    followed = {row: [] for row in chosen}  # in the order of their first use
    for row, following in zip(chosen, letters[1:], strict=False):
        followed[row].append(following)
    step = len(text) / len(followed)
    boxes = {}
    for t, row in enumerate(chosen):
        read, again = letters[max(0, t + 1 - n) : t + 1], chosen.count(row) > 1
        boxes[f"at {t}"] = Box("".join(read), t, 0, colour=BLUE if again else None)
    for i, (row, after) in enumerate(followed.items()):
        words = f"row {row}\nthen {' '.join(dict.fromkeys(after)) or '?'}"
        boxes[f"row {row}"] = Box(words, i * step, 2, step, BLUE if len(after) > 1 else None)
    arrows = [(f"at {t}", f"row {row}") for t, row in enumerate(chosen)]
    title = f"the row of each position, by its last {n} bytes, and what followed"
    met = [f"row {row} {len(after)} times" for row, after in followed.items() if len(after) > 1]
    return Diagram(
        title, boxes, arrows, f"{title}: {len(followed)} rows, {', '.join(met)}.", down=True
    )


@explorer(
    "Who meets whom? When do strangers start to share a row?",
    text=choice("text", list(TEXTS)),
    n=slider("bytes read", [1, 2, 3, 4, 6]),
    rows=slider("rows", [4, 16, 64, 256, 4096]),
)
def meet(text: str = "abracadabra", n: int = 2, rows: int = 64):
    """Which positions share a row: with the same last n bytes (blue), or by accident (orange)."""
    x = torch.tensor(list(TEXTS[text]))
    chosen, context = address(x, n, rows), address(x, n, 2**32)
    same_row = (chosen[:, None] == chosen).tril(-1)
    same_context = (context[:, None] == context) & same_row
    met, strangers, in_use = (
        same_context.any(dim=1).sum().item(),
        (same_row & ~same_context).any(dim=1).sum().item(),
        len(chosen.unique()),
    )
    names = [chr(byte).replace("\n", "⏎").replace(" ", "␣") for byte in TEXTS[text]]
    table = Heat(
        title="reading position (down), earlier position (across)",
        rows=(same_context.double() - (same_row & ~same_context).double()).tolist(),
        row_names=names,
        column_names=names,
        said=f"Of {len(x)} positions, {met} find a row of their own context and "
        f"{strangers} one that a stranger has written.",
    )
    said = [
        f"{met} of {len(x)} positions meet their own context again",
        f"{strangers} find what a stranger has written",
        f"{in_use} rows in use",
    ]
    return [(table, Note(f"last {n} bytes, {rows:,} rows", said))]
