"""The exercises of each lesson, with their answers: what `check` reads."""

from . import (
    addresses,
    assembly,
    attention,
    cumsum,
    cutting,
    forgetting,
    fusing,
    growth,
    linear,
    parts,
    patches,
    race,
    shapes,
    tiles,
    training,
    windows,
    writing,
)

_ORDER = (
    *(attention, linear, cumsum, growth, addresses, patches),
    *(fusing, assembly, training, writing, race),
    *(parts, tiles, windows, forgetting, shapes, cutting),
)
EXERCISES = {module.__name__.rpartition(".")[2]: module.EXERCISES for module in _ORDER}
