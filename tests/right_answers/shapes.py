"""Right answers to the exercises of lesson 16."""

ANSWERS = {}
