"""Coordination: who measures what, so that work is done once. Correctness never depends on it."""
