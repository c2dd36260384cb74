"""Lesson 15, Learn to forget."""
