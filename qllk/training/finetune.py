"""Fine-tuning: a new run that starts from the weights of an earlier one, on another text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ..files import user_path
from ..model.families import build
from ..model.pretrained import load_hf
from ..spec import Spec
from ..text.corpora import Corpus
from .checkpoint import load_model
from .questions import fit_vocabulary
from .recipe import Recipe


def pretrained_model(
    path: str | Path,
    text: Corpus,
    recipe: Recipe,
    change: Callable[[Spec], Spec] = lambda spec: spec,
) -> nn.Module:
    """The model of a checkpoint, or of a folder as `load_hf` reads it, for another text.

        trainer = Trainer(pretrained_model("code.safetensors", text, recipe), text, recipe)

    Its vocabulary grows to fit the text. The vectors of an id are kept, whatever the id stands for
    in the new text; those of new ids are drawn as in a fresh model. `change` may change what has no
    weights, such as the dropout, and the head, whose weights are then drawn afresh:
    `lambda spec: spec.but(head="pooled")` makes a classifier of an encoder.

    Raises   FileNotFoundError, ValueError as `load_model` and `load_hf`
    """
    path = user_path(path)
    source = load_hf(path) if path.is_dir() else load_model(path)[0]
    spec = fit_vocabulary(change(source.spec), recipe.window, text.tokenizer, recipe.question)
    model = build(spec, seed=recipe.seed)
    learned = source.state_dict()
    with torch.no_grad():
        for name, weights in model.state_dict().items():
            if spec.head != source.spec.head and name.startswith("head."):
                continue
            rows = len(learned[name]) if weights.ndim else 1
            (weights[:rows] if weights.ndim else weights).copy_(learned[name])
    return model
