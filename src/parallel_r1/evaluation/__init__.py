"""How good answers are, and whether a difference is more than chance."""
