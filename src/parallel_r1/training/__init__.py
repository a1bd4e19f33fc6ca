"""Traces to updates."""
