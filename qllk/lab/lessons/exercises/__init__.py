"""The exercises of each lesson, with their answers: what `check` reads."""

from . import (
    addresses,
    assembly,
    attention,
    cumsum,
    fusing,
    growth,
    linear,
    patches,
    race,
    training,
    writing,
)

_ORDER = (
    *(attention, linear, cumsum, growth, addresses, patches),
    *(fusing, assembly, training, writing, race),
)
EXERCISES = {module.__name__.rpartition(".")[2]: module.EXERCISES for module in _ORDER}
