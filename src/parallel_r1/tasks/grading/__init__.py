"""Grading: whether a final answer equals a reference."""
