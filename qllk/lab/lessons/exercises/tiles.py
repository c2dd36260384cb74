"""Exercises of lesson 13, Tile the attention."""

from __future__ import annotations

EXERCISES = ()
