"""Right answers to the exercises of lesson 15."""

ANSWERS = {}
