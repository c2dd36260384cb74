"""Measurements of models: what they see, what their states contain, losses, time and memory."""

from .inside import (
    attention_weights,
    positions_seen,
    rows_in_use,
    state_bytes,
    state_numbers,
    state_rms,
    visibility,
)
from .laws import check_laws

__all__ = [
    "attention_weights",
    "check_laws",
    "positions_seen",
    "rows_in_use",
    "state_bytes",
    "state_numbers",
    "state_rms",
    "visibility",
]
