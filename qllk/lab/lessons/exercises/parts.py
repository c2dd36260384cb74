"""Exercises of lesson 12, Choose the parts."""

from __future__ import annotations

EXERCISES = ()
