"""Right answers to the exercises of lesson 17."""

ANSWERS = {}
