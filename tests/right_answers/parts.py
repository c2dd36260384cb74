"""Right answers to the exercises of lesson 12."""

ANSWERS = {}
