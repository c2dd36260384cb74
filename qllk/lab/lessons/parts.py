"""Lesson 12, Choose the parts."""
