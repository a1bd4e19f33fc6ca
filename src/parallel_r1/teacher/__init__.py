"""Answers to imitate from a model: ask a teacher or the user's own model, keep what is right and well written.

`journal` holds every response from the moment it has come, `server` and `own` ask, `sieve` says which responses are
kept, `collection` puts these together and writes what became of them.
"""
