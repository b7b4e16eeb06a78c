"""Training: the state, the step, the loop, its checkpoints and metrics."""
