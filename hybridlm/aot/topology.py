"""Describes chips that are not attached: TPU slices and GPU hosts by name, with their figures."""

import importlib.util
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax

from hybridlm.errors import UserError
from hybridlm.settings.names import nearest
from kernels_pallas.aot.chips import CHIPS, host_of_gpus

GIB = 2**30


class _Kind(NamedTuple):
    """A kind of chip.

    Attributes:
      known_as: the compiler's name.
      sides: dimensions of its grid. With three, slices of whole cubes of 4 x 4 x 4 chips are tori.
      cores: cores per jax device; `CHIPS` has figures per core.
      hbm: bytes per jax device.
      interconnect: bytes/s that one jax device sends over all its links.
      example: the name of a small slice.
    """

    known_as: str
    sides: int
    cores: int
    hbm: int
    interconnect: float
    example: str


# Data sheets: 1,600, 4,800, 3,584 and 9,600 Gbit/s a chip. A v7x chip is two jax devices.
_KINDS = {
    "v5e": _Kind("v5e", 2, 1, 16 * GIB, 200e9, "v5e:2x2"),
    "v5p": _Kind("v5p", 3, 2, 95 * GIB, 600e9, "v5p:2x2x1"),
    "v6e": _Kind("v6e", 2, 1, 32 * GIB, 448e9, "v6e:2x2"),
    "v7x": _Kind("tpu7x", 3, 1, 96 * GIB, 600e9, "v7x:2x2x1"),
}


# H100 SXM: the memory that the device reports, and NVLink's bytes/s in one direction.
_GPU = _Kind("h100", 1, 1, 84_942_979_072, 450e9, "h100:8")
_OF_A_HOST = (1, 2, 4, 8)


class CompileTarget(NamedTuple):
    """The devices that a step is compiled for, and the figures of one device.

    Attributes:
      name: as the user wrote it.
      chip: "v5e", ... or "sm_90a".
      devices: descriptions for a mesh; programs compile for them but cannot run.
      hbm: bytes.
      flops: FLOP/s of bfloat16 matrix products.
      bandwidth: bytes/s of HBM.
      interconnect: bytes/s that a device sends over all its links.
    """

    name: str
    chip: str
    devices: Sequence[jax.Device]
    hbm: int
    flops: float
    bandwidth: float
    interconnect: float


def find(name: str, slices: int = 1) -> CompileTarget:
    """The target of that name: TPU slices, "v5p:8x8x8" (512 chips each), or a GPU host, "h100:8".

    Raises:
      UserError: for an unknown name, chip or shape, and if the compiler is not installed.
    """
    if slices < 1:
        raise UserError(f"--slices must be at least 1, not {slices}")
    if name.partition(":")[0] == _GPU.known_as:
        if slices > 1:
            raise UserError("--slices is for TPUs: compile knows a single host of GPUs")
        chip, kind, devices = "sm_90a", _GPU, _gpus(name)
    else:
        chip, kind, sides = _read(name)
        _need("libtpu", "libtpu, the compiler of TPUs")
        devices = _devices(kind, sides, name, slices)
    figures = CHIPS[chip]
    return CompileTarget(
        name=f"{slices} of {name}" if slices > 1 else name,
        chip=chip,
        devices=devices,
        hbm=kind.hbm,
        flops=kind.cores * figures.flops,
        bandwidth=kind.cores * figures.bandwidth,
        interconnect=kind.interconnect,
    )


def _need(module: str, what: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"compile needs {what}, which this environment does not have: `make aot` builds one"
            " that does, .venv-aot (run .venv-aot/bin/hybridlm compile ...)"
        )


def _gpus(name: str) -> Sequence[jax.Device]:
    """The H100s of one host."""
    count = name.partition(":")[2]
    if count not in map(str, _OF_A_HOST):
        raise UserError(
            f"--topology {name!r} is no host of {_GPU.known_as}, which has"
            f" {', '.join(map(str, _OF_A_HOST))} of them, e.g. {_GPU.example}"
        )
    _need("jax_cuda13_plugin", "jax's CUDA plugin, the compiler of GPUs")
    jax.devices()  # makes jax load its plugins
    return host_of_gpus(CHIPS["sm_90a"], int(count)).devices


def _read(name: str) -> tuple[str, _Kind, tuple[int, ...]]:
    chip, colon, shape = name.partition(":")
    chip = {"tpu7x": "v7x", "v5litepod": "v5e"}.get(chip, chip)
    examples = ", ".join(kind.example for kind in (*_KINDS.values(), _GPU))
    if chip not in _KINDS:
        known = [*_KINDS, _GPU.known_as]
        raise UserError(
            f"--topology {name!r} names no chip that compile knows: {nearest(chip, known)}"
            f" (chip:shape, e.g. {examples})"
        )
    kind = _KINDS[chip]
    sides = tuple(map(int, shape.split("x"))) if re.fullmatch(r"\d+(x\d+)*", shape) else ()
    if not colon or len(sides) != kind.sides or not all(sides):
        raise UserError(
            f"--topology {name!r} has no shape of {chip}, which has {kind.sides} sides, e.g."
            f" {kind.example}"
        )
    if sides[:2] != (1, 1) and (sides[0] % 2 or sides[1] % 2):
        raise UserError(
            f"--topology {name!r} is not made of whole hosts of 2 x 2 chips: the first two sides of"
            f" {chip} must be even, e.g. {kind.example}, or all 1"
        )
    if sides[:2] == (1, 1) and len(sides) == 3 and sides[2] != 1:
        raise UserError(f"--topology {name!r} is no slice of {chip}: one chip is {chip}:1x1x1")
    return chip, kind, sides


def is_torus(sides: tuple[int, ...]) -> bool:
    """Whether opposite faces of a slice are linked: whole cubes of 4 x 4 x 4 chips are."""
    return len(sides) == 3 and not any(side % 4 for side in sides)


def _devices(kind: _Kind, sides: tuple[int, ...], name: str, slices: int) -> Sequence[jax.Device]:
    from jax.experimental import topologies

    # Without these, libtpu searches for a chip, a metadata server and other processes.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE="v5litepod-4",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    options = {"chips_per_host_bounds": (1, 1, 1)} if set(sides) == {1} else {}
    if is_torus(sides):
        # Without it libtpu assumes an open grid, on which it gathers parameters by all-reduces.
        options["wrap"] = (True, True, True)
    if slices > 1:
        options["num_slices"] = slices
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{kind.known_as}:{'x'.join(map(str, sides))}", **options
        ).devices
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--topology {name!r} is refused by libtpu: {reason}") from error
