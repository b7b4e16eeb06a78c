"""How many threads an experiment's process computes with."""

import os


def one_thread() -> None:
    """XLA computes with one thread in this process and its children; call it before jax starts.

    Models as small as these are slower on several, and two processes of one thread each are faster
    than one process on two cores.
    """
    flags = "--xla_cpu_multi_thread_eigen=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
