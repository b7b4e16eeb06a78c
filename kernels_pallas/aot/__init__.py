"""Compiling kernels for chips that are not there, and what the compiled programs say.

`python -m kernels_pallas.aot` compiles every registered kernel, forward and backward, for every
chip in `chips.CHIPS` on a machine that has none of them, and writes the static scorecard. It needs
the `aot` extra; `make aot` builds an environment that has it.
"""
