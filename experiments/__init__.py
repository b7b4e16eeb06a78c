"""Experiments: one folder a claim."""
