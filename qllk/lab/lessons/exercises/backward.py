"""Exercises of lesson 18, A GPT by hand."""

from __future__ import annotations

EXERCISES = ()
