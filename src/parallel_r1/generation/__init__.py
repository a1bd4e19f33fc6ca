"""Prompts to traces, problems to judged rollouts."""
