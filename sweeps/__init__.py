"""Sweeps: a specification becomes points, points become stored results."""
