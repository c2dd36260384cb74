"""Right answers to the exercises of lesson 18."""

ANSWERS = {}
