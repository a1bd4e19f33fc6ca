"""Sets of problems: their rows, splits, damage, and overlap with benchmarks."""
