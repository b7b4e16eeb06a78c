"""Compiles kernels for chips that are not attached, and reads the compiled programs.

`python -m kernels_pallas.aot` compiles every registered kernel, forward and backward, for every chip in
`chips.CHIPS`, on a machine without any of them, and writes the static scorecard. It needs the `aot`
extra; `make aot` builds an environment that has it.
"""
