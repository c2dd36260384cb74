"""Whether what a file holds is a run that this trainer can go on with: nothing in it is believed.

The file may be damaged, or made to harm. A run is its tensors ("model.…", "optimizer.…") and its
facts, which are plain data; see `Trainer.tensors` and `Trainer.facts`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

from . import optim
from .recipe import COMMANDS, Recipe, check_range
from .spec import Spec

# A resumed run may differ in these.
FREE = ("device", "precision", "matmul", "compile", "recompute")


def check(trainer, tensors, facts) -> None:
    """Refuse what is not a run of this trainer's model, text and recipe.

    Raises   ValueError saying what differs or is damaged
    """
    check_facts(trainer, facts)
    check_tensors(trainer, tensors)


def check_facts(trainer, facts):
    try:
        if Spec.from_json(facts["spec"]) != trainer.spec:
            raise ValueError("it holds another model than this one")
        if facts["corpus"]["fingerprint"] != trainer.corpus.fingerprint:
            raise ValueError(
                f"it was trained on another text than {trainer.corpus.name!r} holds now; give the "
                "old text, or start a new run"
            )
        for name, value in asdict(Recipe.from_dict(facts["recipe"])).items():
            mine = getattr(trainer.recipe, name)
            if value != mine and name not in FREE:
                raise ValueError(f"its recipe has {name}={value!r}, this one {mine!r}")
        for name in ("step", "bytes_seen"):
            check_range(name, facts[name], int, 2**63 - 1)
        check_range("seconds", facts["seconds"], int | float, sys.float_info.max)
        COMMANDS["lr"](facts["lr"])
        COMMANDS["batch"](facts["batch"])
        for step, name, value in [
            *facts["log"],
            [0, "device", facts["device"]],
            [0, "precision", facts["precision"]],
        ]:
            check_range("a step of the log", step, int, 2**63 - 1)
            COMMANDS[name](value)
        dict(facts["scaler"]), dict(facts["state_rms"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its facts are damaged: {type(error).__name__} {error}") from None


def check_tensors(trainer, tensors):
    expected = {f"model.{name}": p for name, p in trainer.model.state_dict().items()}
    for index, fresh in enumerate(optim.fresh(trainer.optimizer)):
        moments = {f"optimizer.{index}.{key}": like for key, like in fresh.items()}
        if not moments.keys().isdisjoint(tensors):  # none before the first gradient
            expected |= moments
    if missing := sorted(set(expected) - set(tensors)):
        raise ValueError(f"tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if unknown := sorted(set(tensors) - set(expected)):
        raise ValueError(f"tensor {unknown[0]!r} belongs to no part ({len(unknown)} in all)")
    for name, like in expected.items():
        got = tensors[name]
        if got.shape != like.shape or got.dtype != like.dtype:
            raise ValueError(
                f"tensor {name!r} is {tuple(got.shape)} {got.dtype}, expected "
                f"{tuple(like.shape)} {like.dtype}"
            )
