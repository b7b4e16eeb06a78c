"""Programs of this folder that need 8 devices: how tests run them, and what they share."""

import math
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np

from hybridlm.config import MeshConfig
from hybridlm.parallel.mesh import make_mesh

FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"


def run_program(root: pathlib.Path, name: str, *arguments: object) -> str:
    """What a program prints, run by itself on 8 simulated devices."""
    program = pathlib.Path(__file__).with_name(name)
    done = subprocess.run(
        [sys.executable, str(program), *map(str, arguments)],
        cwd=root,
        capture_output=True,
        text=True,
        env=os.environ | dict(XLA_FLAGS=FLAGS),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def mesh_of(sizes):
    """A mesh of the first devices, from the sizes of its axes."""
    devices = jax.devices()[: math.prod(sizes.values())]
    return make_mesh(MeshConfig(**dict(data=1) | sizes), devices)


def difference(found, expected) -> float:
    """The largest difference of two trees, relative to the largest value of each array."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(
        float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3))
        for a, b in (map(np.asarray, pair) for pair in pairs)
    )
