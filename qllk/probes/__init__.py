"""Measurements of models on text: what is seen, what a state holds, losses, time and memory."""

from .inside import (
    attention_weights,
    positions_seen,
    state_bytes,
    state_numbers,
    state_rms,
    state_tensors,
    visibility,
)

__all__ = [
    "attention_weights",
    "positions_seen",
    "state_bytes",
    "state_numbers",
    "state_rms",
    "state_tensors",
    "visibility",
]
