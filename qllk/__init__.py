"""A linear-time byte language model, built step by step: the library of the course.

    model = qllk.build("qllk-3")                     logits = model(ids)
    trainer = qllk.Trainer("qllk-3", qllk.corpus("stdlib"))
    for record in trainer: print(record.step, record.bits_per_byte)

Axes     B batch, T time, D model width, H heads, K key width, V value width, F MLP width,
         P patches, R bytes per patch, W window, C chunk, S state.
"""

__version__ = "0.1.0"

from . import probes
from .model.families import build
from .model.pretrained import load_hf
from .model.register import register
from .model.sample import generate, stream
from .presets import PRESETS
from .spec import Patch, Spec
from .study import published
from .text.corpora import corpus
from .training import devices
from .training.recipe import Recipe
from .training.trainer import Trainer

__all__ = [
    "PRESETS",
    "Patch",
    "Recipe",
    "Spec",
    "Trainer",
    "build",
    "corpus",
    "devices",
    "generate",
    "load_hf",
    "probes",
    "published",
    "register",
    "stream",
]
