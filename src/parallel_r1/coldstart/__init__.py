"""Answers to imitate: from files, procedural teachers, a server, or the model itself."""
