"""Experiments, one folder per claim."""
