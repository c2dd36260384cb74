"""Exercises of lesson 16, One block, three shapes."""

from __future__ import annotations

EXERCISES = ()
