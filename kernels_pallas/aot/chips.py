"""The chips that kernels are compiled for, with the numbers of their data sheets."""

import importlib.resources
from typing import NamedTuple


class Chip(NamedTuple):
    """A chip's compiler target and its rooflines.

    Arguments:
      platform: "tpu" or "cuda".
      topology: the compiler's name of its smallest slice.
      flops: bfloat16 matrix products, FLOP/s of one core (a v5p and a v7x have two; a kernel runs
        on one).
      bandwidth: of HBM, bytes/s of one core.
    """

    platform: str
    topology: str
    flops: float
    bandwidth: float


CHIPS = {
    "v5e": Chip("tpu", "v5e:2x2", 197e12, 819e9),
    "v5p": Chip("tpu", "v5p:2x2x1", 459e12 / 2, 2765e9 / 2),
    "v6e": Chip("tpu", "v6e:2x2", 918e12, 1640e9),
    "v7x": Chip("tpu", "tpu7x:2x2x1", 2307e12 / 2, 7380e9 / 2),
    "sm_90a": Chip("cuda", "h100", 989e12, 3352e9),
}


def host_of_gpus(chip: Chip, count: int = 1):
    """The topology of a host with `count` GPUs, from the description of one GPU.

    jax must have discovered its plugins, as it does when it is asked for devices.
    """
    from jax.experimental import topologies

    described = importlib.resources.files("kernels_pallas.aot").joinpath(f"{chip.topology}.txtpb")
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=chip.topology,
        topology=f"1x1x{count}",
        target_config=described.read_text(),
    )
