"""Lesson 18, A GPT by hand."""
