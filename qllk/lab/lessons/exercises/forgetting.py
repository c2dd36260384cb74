"""Exercises of lesson 15, Learn to forget."""

from __future__ import annotations

EXERCISES = ()
