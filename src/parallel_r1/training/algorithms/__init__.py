"""Advantages and losses, one algorithm per file. Importing this registers all that come with the package."""

from parallel_r1.training.algorithms import base, grpo, gspo, rloo, sft

__all__ = ["base", "grpo", "gspo", "rloo", "sft"]
