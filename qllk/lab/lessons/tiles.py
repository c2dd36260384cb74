"""Lesson 13, Tile the attention."""
