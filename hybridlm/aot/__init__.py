"""Compiling a training step for chips that are not there, and what the compiler says of it."""
