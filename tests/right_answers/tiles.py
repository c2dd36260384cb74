"""Right answers to the exercises of lesson 13."""

ANSWERS = {}
