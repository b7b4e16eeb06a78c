"""The commands of `hybridlm`, one per file.

A file defines a command's settings (dataclasses from which the options are generated) and its
function. It imports jax, matplotlib and other large packages inside functions, so that the command
line prints help without loading them.
"""
