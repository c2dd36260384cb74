"""Options that several commands of `python -m qllk` have, and what they say."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path

from ..files import check_writable, user_path
from ..presets import recipe_of
from ..spec import Spec
from ..training import devices
from ..training.recipe import Recipe

MODEL, CORPUS = "qllk-3", "stdlib"  # unless others are given


def path(text: str) -> Path:
    """The path that a user writes, see `user_path`, for `add_argument(type=…)`."""
    try:
        return user_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def duration(text: str) -> float:
    """A time that a user writes, for `add_argument(type=…)`."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"a time must be a number of at least 0, got {text!r}")
    return value


def add_json(made: argparse.ArgumentParser) -> None:
    """Add --json."""
    made.add_argument("--json", action="store_true", help="print the result as JSON")


def add_dropout(made: argparse.ArgumentParser) -> None:
    """Add --dropout and --ngram-dropout."""
    add = made.add_argument
    add("--dropout", type=float, help="dropout rate, instead of the model's own")
    add("--ngram-dropout", type=float, help="dropout rate of rows of n-grams, instead of its own")


def change_dropout(spec: Spec, args: argparse.Namespace) -> Spec:
    """The spec with the dropout of the options; one without n-grams has only the first."""
    if args.dropout is not None:
        spec = spec.but(dropout=args.dropout)
    if args.ngram_dropout is not None and spec.ngrams:
        spec = spec.but(ngrams=replace(spec.ngrams, dropout=args.ngram_dropout))
    return spec


def add_recipe(made: argparse.ArgumentParser, leave_out: Collection[str] = ("seconds",)) -> None:
    """Add one option for each field of a Recipe. `given_fields` are those that a user gives."""
    group = made.add_argument_group("recipe")
    for field in fields(Recipe):
        if field.name in leave_out:
            continue
        option, meaning = f"--{field.name.replace('_', '-')}", field.metadata["help"]
        default = "the preset's own" if field.name in recipe_of("") else field.default
        if field.name == "precision":
            default = "auto, the fastest"
        how = {"type": {"int": int, "float": float}.get(field.type, str)}
        if field.type == "bool":
            how, default = {"action": "store_true"}, "off"
        text = f"{meaning} (default: {default})"
        group.add_argument(option, default=argparse.SUPPRESS, help=text, **how)


def given_fields(args: argparse.Namespace) -> dict[str, int | float | str]:
    """The fields of a Recipe that the options give.

    Raises   ValueError when they give two budgets
    """
    names = {field.name for field in fields(Recipe)} - {"seconds"}
    given = {name: value for name, value in vars(args).items() if name in names}
    if getattr(args, "minutes", None) is not None:
        if "steps" in given:
            raise ValueError("--steps and --minutes exclude each other; leave one out")
        given["seconds"] = 60 * args.minutes
    return given


def read_recipe(args: argparse.Namespace) -> Recipe:
    """The Recipe of the options, and of the model where there is no option.

    Raises   ValueError as `Recipe` and `devices.fastest_precision`
    """
    given = recipe_of(getattr(args, "model", MODEL)) | {"precision": "auto"} | given_fields(args)
    if given["precision"] == "auto":
        device = given.get("device", Recipe.device)
        given["precision"] = devices.fastest_precision(device)
    return Recipe(**given)


def check_outputs(*paths: Path | None, picture: Path | None = None) -> None:
    """Check that results can be written to these files, before there are any.

    Raises   ValueError when two are the same file, or a picture is no PNG
             OSError when a file cannot be written
    """
    given = [path for path in (*paths, picture) if path]
    if picture and picture.suffix.lower() != ".png":
        raise ValueError(f"--plot draws a PNG, so its name must end in .png; got {str(picture)!r}")
    if len({os.path.realpath(path) for path in given}) < len(given):
        raise ValueError(f"two results cannot be written to one file: {given[0]}")
    for path in given:
        check_writable(path)
