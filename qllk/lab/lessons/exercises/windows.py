"""Exercises of lesson 14, Look through a window."""

from __future__ import annotations

EXERCISES = ()
