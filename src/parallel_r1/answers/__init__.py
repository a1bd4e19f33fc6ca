"""Answers: their syntax, their spans, who sees whom in them, and rollouts. No torch."""
