"""Lesson 10, Write with it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import torch

from ...model import sample
from ...model.families import ModelState, build
from ...model.inputs import start_recall
from ...probes.inside import state_bytes
from ...study.figures import Chart, Note, Page
from ..explore import explorer, line, slider, switch
from ..keep import kept_weights
from ..writer import load_writer
from .exercises.assembly import weights_for_model

_COLUMNS = 64  # characters of written text in a line
PIECE = 25  # bytes written between two points of a curve; divides every length
_PAGE_SECONDS = 0.5  # between two pages


# A text that was in no training data: names in what follows it come from its memory.
PROMPT = b'''class Drawer:
    """A drawer holds spoons."""

    def __init__(self):
        self.spoons = []

    def put(self, spoon):
        """Put one more spoon into the drawer."""
        self.spoons.append(spoon)

    def take(self):
        """Take a spoon out of the drawer."""
        if not self.spoons:
            raise ValueError("the drawer is empty")
        return self.spoons.pop()

    def '''


# ---------------------------------------------------------------- states


def split_state(state: ModelState) -> dict[str, tuple]:
    """What a qllk-3 carries, by what it is for."""
    rows, address, hashes = state.recall
    return {
        "inputs of convolutions": state.parts,
        "contexts so far": (state.ngrams, address, hashes),
        "rows of the recall": (rows,),
    }


def exchange(part: str, state: ModelState, other: ModelState) -> ModelState:
    """The state with one part of another one."""
    parts = split_state(state) | {part: split_state(other)[part]}
    convolutions, (ngrams, *hashes), (rows,) = parts.values()
    return state._replace(
        parts=convolutions, ngrams=ngrams, recall=state.recall._make((rows, *hashes))
    )


def start_state(model, ids: torch.Tensor) -> ModelState:
    """The state of a qllk-3 before it has read any of the ids, (B,T)."""
    recall = model.spec.recall
    empty = start_recall(ids, recall.contexts, recall.addresses, model.recall.dtype)
    return ModelState(0, None, None, empty)


_SPANS = {"byte 1": (0, 1), "2 to 8": (1, 8), "9 to 32": (8, 32), "33 to 128": (32, 128)}


def print_costs(costs: dict[str, torch.Tensor]) -> None:
    """Mean losses in spans of 128 bytes, with half the range over the sets of texts.

    Shapes   each of the costs (sets,128)
    """
    print(f"{'':24}", *(f"{span:>12}" for span in _SPANS))
    for name, nats in costs.items():
        sets = [nats[:, first:end].mean(dim=1) for first, end in _SPANS.values()]
        cells = (f"{x.mean():5.2f} ± {(x.max() - x.min()) / 2:.2f}" for x in sets)
        print(f"{name:24}", *cells)


def own_model():
    """qllk-3-nano with the weights that lesson 09 kept; None if there are none that fit."""
    model = build("qllk-3-nano")
    names = dict(zip(weights_for_model(model), model.state_dict(), strict=True))
    try:
        if (weights := kept_weights()) is None:
            return None
        model.load_state_dict({names.get(name, name): weight for name, weight in weights.items()})
    except (ValueError, RuntimeError) as error:
        print(f"(your weights of lesson 09 cannot be used: {error})")
        return None
    return model.eval()


# ---------------------------------------------------------------- widget


class _Reader:
    """A model, the state that it carries, and what each byte costs it."""

    def __init__(self, model):
        self.model, self.state = model, None
        self.kib: list[tuple[int, float]] = []  # (bytes written, size of the state)
        self.milliseconds: list[tuple[int, float]] = []  # (bytes written, time of a byte)
        self._newest: deque[float] = deque(maxlen=PIECE)

    def read(self, ids):
        """Logits of ids (1,T), which follow those that were read before."""
        start = time.perf_counter()
        with torch.no_grad():
            logits, self.state = self.model.run(ids, self.state)
        self._newest.append(1e3 * (time.perf_counter() - start))
        return logits

    def note(self, written: int) -> None:
        """A point for each curve; the time is the shortest, since other work only adds to it."""
        self.kib.append((written, state_bytes(self.state) / 1024))
        self.milliseconds.append((written, min(self._newest)))


def wrapped(text: bytes, columns: int = _COLUMNS) -> list[str]:
    """Text as lines that fit; what is neither ASCII nor printable becomes a dot."""
    rows = [
        "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in row) for row in text.splitlines()
    ]
    return [row[i : i + columns] for row in rows for i in range(0, max(1, len(row)), columns)]


@explorer(
    "Which words does it have from the class above, and what is left of them without the recall?",
    runs=True,
    drawer=switch("after the class Drawer"),
    prompt=line("prompt"),
    temperature=slider("temperature", [0, 0.3, 0.5, 0.8, 1.0, 1.5, 2.5]),
    top_p=slider("top-p", [0.3, 0.6, 0.8, 0.9, 0.95, 1.0]),
    recall=switch("recall is carried"),
)
def play(
    drawer=True, prompt="count", temperature=0.5, top_p=1.0, recall=True, length=300
) -> Iterator[Page]:
    """What the model that ships with the lessons writes after a prompt. Yields pages."""
    pick = sample.sampler(temperature, top_p=top_p, seed=3) if temperature else sample.greedy
    text = drawer * PROMPT + prompt.encode()
    yield from pages(load_writer(), text or b"\n", pick, length, recall)


def pages(model, prompt: bytes, pick, length: int, recall: bool = True) -> Iterator[Page]:
    """What a model writes, the size of its state, and the time of each byte.

    Without `recall` its rows are emptied after each byte. Attention reads along for comparison. Its
    weights are random: they change nothing in its cost.
    """
    writer, attention = _Reader(model), _Reader(build("gpt-nano", seed=0).eval())
    text, ids, shown = prompt, torch.tensor([list(prompt)]), 0.0
    empty = start_state(model, ids)
    for written in range(1, length + 1):
        logits = writer.read(ids)
        if not recall:
            writer.state = exchange("rows of the recall", writer.state, empty)
        attention.read(ids)
        ids = pick(logits[:, -1])[:, None]
        text += bytes(ids[0].tolist())
        if written % PIECE == 0:
            writer.note(written)
            attention.note(written)
            if written == length or time.perf_counter() - shown > _PAGE_SECONDS:
                shown = time.perf_counter()
                yield page(text, written, writer, attention)


def page(text: bytes, written: int, writer: _Reader, attention: _Reader) -> Page:
    """The text so far, and a curve for each reader."""
    readers = {"qllk-3": writer, "gpt": attention}
    sizes = {name: list(reader.kib) for name, reader in readers.items()}
    paces = {name: list(reader.milliseconds) for name, reader in readers.items()}
    return [
        Note(f"The prompt, and {written} bytes after it", wrapped(text)),
        Chart(sizes, "bytes written", "state, KiB", log=""),
        Chart(paces, "bytes written", "milliseconds for a byte", log=""),
    ]
