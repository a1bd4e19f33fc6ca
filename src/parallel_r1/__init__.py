"""Teach language models to think in parallel by reinforcement learning."""

__version__ = "0.2.0.dev0"
