"""Lesson 17, Cut text into pieces."""
