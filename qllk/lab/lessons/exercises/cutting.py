"""Exercises of lesson 17, Cut text into pieces."""

from __future__ import annotations

EXERCISES = ()
