"""Answers that fork over vLLM: in this process, or on servers."""
