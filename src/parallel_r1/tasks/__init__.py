"""Tasks: problems, and the verifiers that decide which answers are correct."""
