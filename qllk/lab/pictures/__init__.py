"""Figures as SVG text, and the primitives they are drawn with."""
