"""The trainer: state, step, loop, checkpoints, metrics."""
