"""Lesson 16, One block, three shapes."""
