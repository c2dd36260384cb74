"""Right answers to the exercises of lesson 14."""

ANSWERS = {}
