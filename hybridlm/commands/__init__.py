"""The commands of `hybridlm`, a file each.

A file says what a command takes (a settings dataclass, from which its options are generated) and
what it does. It imports jax, matplotlib and other large packages inside its functions: the command
line must not wait for them to print a page of help.
"""
