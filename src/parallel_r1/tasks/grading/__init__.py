"""Whether a final answer equals a reference."""
