"""Measurements of models: what they see, what their states contain, losses, time and memory."""

from .inside import (
    attention_weights,
    positions_seen,
    state_bytes,
    state_numbers,
    state_rms,
    visibility,
)

__all__ = [
    "attention_weights",
    "positions_seen",
    "state_bytes",
    "state_numbers",
    "state_rms",
    "visibility",
]
