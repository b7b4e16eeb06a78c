"""The placement of devices in the mesh."""

from typing import NamedTuple

import numpy as np
import pytest

from hybridlm.config import MeshConfig
from hybridlm.errors import ConfigError
from hybridlm.parallel import mesh


class Chip(NamedTuple):
    slice_index: int
    id: int
    platform: str = "tpu"


CHIPS = [Chip(i % 2, i) for i in range(16)]  # two slices, interleaved


@pytest.fixture(autouse=True)
def no_torus(monkeypatch):
    monkeypatch.setattr(
        mesh,
        "_grid",
        lambda devices, shape: np.array([d.slice_index for d in devices]).reshape(shape),
    )
    monkeypatch.setattr(mesh, "Mesh", lambda grid, axes, axis_types: grid)


@pytest.mark.parametrize("sizes", [dict(data=2, fsdp=8), dict(data=4, fsdp=2, context=2)])
def test_slices_are_placed_along_data(sizes):
    grid = mesh.make_mesh(MeshConfig(**sizes), CHIPS)
    first, second = np.split(grid, 2)
    assert np.all(first == 0) and np.all(second == 1)


def test_other_axes_may_not_span_slices():
    with pytest.raises(ConfigError, match="mesh.data 1 does not divide over the 2 slices"):
        mesh.make_mesh(MeshConfig(data=1, fsdp=16), CHIPS)


def test_gpu_hosts_are_not_slices():
    gpus = [chip._replace(platform="gpu") for chip in CHIPS]
    assert mesh.make_mesh(MeshConfig(data=1, fsdp=16), gpus).shape == (1, 16, 1, 1, 1)
