"""Compiles a training step for chips that are not attached, and reports memory, FLOPs and time."""
