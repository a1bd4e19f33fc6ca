"""Measure answers, compare results, and say how sure the comparison is."""
