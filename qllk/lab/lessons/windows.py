"""Lesson 14, Look through a window."""
