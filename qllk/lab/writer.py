"""A small trained qllk-3 that ships with the lessons, so that its samples are worth reading.

    python -m qllk.lab.writer       train it again and write its file: about ten minutes of one core

The file is `writer.safetensors`, next to this module. Of a table it has the rows that training has
filled, in int8 with a scale for each row; all other weights are float16. Its header has the spec,
the recipe, the corpus, the versions and the loss on held-out text, as JSON.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from tqdm import tqdm

from .. import __version__
from ..files import write_atomically
from ..model.families import build
from ..model.inputs import Lookup
from ..presets import CONV
from ..probes.evaluate import mean_loss, stream_losses
from ..probes.measure import single_thread
from ..spec import Ngrams, Recall, Spec
from ..text.corpora import Corpus, corpus
from ..training.recipe import Recipe
from ..training.trainer import Trainer

FILE = Path(__file__).with_suffix(".safetensors")
HELD_OUT = 1 << 16  # bytes of the held-out text that the stated loss was measured on, as one stream
_SPEC = Spec(
    d_model=48,
    layers=3,
    mixers=(CONV,),
    mlp=("relu2", {"ratio": 2}),
    ngrams=Ngrams((2, 3, 4, 6, "word"), rows=4096),
    recall=Recall((4, 6, 9, 13, 17, "words-2"), addresses=16_384, rows=4096),
)
_RECIPE = Recipe(steps=9000, batch=1, window=2048, carry=64, lr=8e-3, validate_every=1000)
_EMPTY = 1e-3  # a row without a larger number is as good as zero


def load_writer() -> nn.Module:
    """The trained model in float32 and in eval mode. Each call builds a model of its own."""
    weights, facts = _read()
    model = build(Spec.from_json(json.dumps(facts["spec"])))
    model.load_state_dict(weights)
    return model.eval()


def read_facts() -> dict:
    """How the model was made, and its loss on held-out text in nats per byte."""
    return _read()[1]


@cache
def _read() -> tuple[dict[str, Tensor], dict]:
    with safe_open(FILE, framework="pt") as file:
        packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return unpack(packed), json.loads(file.metadata()["facts"])


# ---------------------------------------------------------------- the file


def pack(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model in few bytes."""
    tables = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, Lookup)}
    packed = {}
    for name, weight in model.state_dict().items():
        packed |= _pack_table(name, weight) if name in tables else {name: weight.half()}
    return packed


def _pack_table(name, weight):
    most = weight.abs().amax(dim=1)
    filled = most > _EMPTY
    scale = most[filled].half() / 127
    numbers = (weight[filled] / scale.float()[:, None]).round().clamp(-127, 127)
    return {name: numbers.char(), f"{name}.filled": filled, f"{name}.scale": scale}


def unpack(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that `pack` has packed, in float32, as near as int8 and float16 allow."""
    weights = {}
    for name, weight in packed.items():
        if (filled := packed.get(f"{name}.filled")) is not None:
            weights[name] = torch.zeros(len(filled), weight.shape[1])
            weights[name][filled] = weight.float() * packed[f"{name}.scale"].float()[:, None]
        elif not name.endswith((".filled", ".scale")):
            weights[name] = weight.float()
    return weights


def _describe(model: nn.Module, text: Corpus, recipe: Recipe) -> dict:
    """What the header says of a trained model."""
    return {
        "spec": asdict(model.spec),
        "recipe": asdict(recipe),
        "corpus": text.name,
        "fingerprint": text.fingerprint,
        "versions": {"qllk": __version__, "torch": torch.__version__},
        "held_out_nats": mean_loss(*stream_losses(model, text.valid[:HELD_OUT])),
    }


def write_model(trained: nn.Module, text: Corpus, recipe: Recipe, path: Path) -> dict:
    """Write a trained model, and return what its header says of the model as it will be read."""
    packed, model = pack(trained), build(trained.spec)
    model.load_state_dict(unpack(packed))
    facts = _describe(model, text, recipe)
    write_atomically(path, to_bytes(packed, {"facts": json.dumps(facts)}))
    return facts


def main() -> None:
    """Train the model and write the file."""
    text = corpus("stdlib")
    with single_thread():
        trainer = Trainer(_SPEC, text, _RECIPE)
        for record in (bar := tqdm(trainer, total=_RECIPE.steps)):
            bar.set_postfix_str(f"{record.bits_per_byte:.3f} bits/byte", refresh=False)
        facts = write_model(trainer.model, text, _RECIPE, FILE)
    print(f"{FILE.name}: {FILE.stat().st_size:,} bytes, {facts['held_out_nats']:.3f} nats per byte")


if __name__ == "__main__":
    main()
