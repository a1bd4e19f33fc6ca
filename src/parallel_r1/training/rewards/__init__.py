"""Rewards: what a judged answer earns in RL. Importing this package registers the built-in rewards."""

from parallel_r1.training.rewards import schedules, terms

__all__ = ["schedules", "terms"]
