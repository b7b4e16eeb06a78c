"""Topologies: errors name the valid ones, and known ones have the data sheet's figures."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hybridlm.aot import hlo, topology
from hybridlm.config import MeshConfig
from hybridlm.parallel.mesh import make_mesh

NO_LIBTPU = importlib.util.find_spec("libtpu") is None
NO_CUDA_PLUGIN = importlib.util.find_spec("jax_cuda13_plugin") is None


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("v9:2x2", "valid are: h100, v5e, v5p, v6e, v7x"),
        ("v5ee:2x2", "did you mean 'v5e'?"),
        ("v5e", "has no shape of v5e, which has 2 sides, e.g. v5e:2x2"),
        ("v5p:8x8", "has no shape of v5p, which has 3 sides, e.g. v5p:2x2x1"),
        ("v5e:4xfour", "has no shape of v5e"),
        ("v6e:0x2", "has no shape of v6e"),
        ("v5e:3x2", "the first two sides of v5e must be even, e.g. v5e:2x2, or all 1"),
        ("v5p:1x1x8", "one chip is v5p:1x1x1"),
        ("h100:3", "is no host of h100, which has 1, 2, 4, 8 of them, e.g. h100:8"),
        ("h100", "is no host of h100"),
    ],
)
def test_an_unknown_topology_is_an_error(refusal, in_root, name, sentence):
    message = refusal("compile", "--config", "configs/demo.py:smoke", "--topology", name)
    assert f"--topology {name!r}" in message and sentence in message


@pytest.mark.skipif(not NO_LIBTPU, reason="libtpu is installed")
def test_without_libtpu_the_error_names_make_aot(refusal, in_root):
    message = refusal("compile", "--config", "configs/demo.py:smoke", "--topology", "v5e:2x2")
    assert "needs libtpu" in message and "`make aot`" in message


@pytest.mark.skipif(NO_LIBTPU, reason="libtpu is not installed: `make aot` installs it")
@pytest.mark.parametrize(
    "name, devices, flops",
    [("v5e:1x1", 1, 197e12), ("v5p:8x8x8", 512, 459e12), ("v7x:2x2x1", 8, 2307e12 / 2)],
)
def test_the_figures_of_a_device(name, devices, flops):
    target = topology.find(name)
    assert (len(target.devices), target.flops) == (devices, flops)


@pytest.mark.skipif(NO_LIBTPU, reason="libtpu is not installed: `make aot` installs it")
@pytest.mark.parametrize("sizes", [dict(fsdp=128, tensor=4), dict(data=2, fsdp=4, context=64)])
def test_a_mesh_may_split_a_side_of_the_torus(sizes):
    grid = make_mesh(MeshConfig(**dict(data=1) | sizes), topology.find("v5p:8x8x8").devices).devices
    assert sorted(d.id for d in grid.flat) == list(range(512))


@pytest.mark.parametrize(
    "sides, torus",
    [
        ((4, 4, 4), True),
        ((8, 8, 16), True),
        ((4, 4, 2), False),
        ((2, 2, 1), False),
        ((4, 4), False),
    ],
)
def test_slices_of_whole_cubes_are_tori(sides, torus):
    assert topology.is_torus(sides) == torus


@pytest.mark.skipif(NO_LIBTPU, reason="libtpu is not installed: `make aot` installs it")
def test_a_torus_gathers_parameters():
    """On a grid that is open, libtpu makes an all-reduce of it, which sends twice the bytes."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=64), topology.find("v5p:4x4x4").devices)
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    shapes = [
        jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=rows) for s in ((4096, 512), (512, 512))
    ]
    with jax.set_mesh(mesh):
        step = jax.jit(jnp.dot, out_shardings=rows).lower(*shapes).compile()
    found = hlo.read(step.as_text()).collectives
    assert {kind: c.payload for kind, c in found.items()} == {"all-gather": 2 * 512 * 512}


@pytest.mark.skipif(
    NO_CUDA_PLUGIN, reason="jax's CUDA plugin is not installed: `make aot` installs it"
)
def test_a_host_of_gpus():
    target = topology.find("h100:8")
    assert (len(target.devices), target.flops, target.chip) == (8, 989e12, "sm_90a")


def test_slices_are_for_tpus(refusal, in_root):
    words = ("--topology", "h100:8", "--slices", "2")
    message = refusal("compile", "--config", "configs/demo.py:smoke", *words)
    assert "--slices is for TPUs" in message


@pytest.mark.skipif(not NO_CUDA_PLUGIN, reason="jax's CUDA plugin is installed")
def test_without_the_cuda_plugin_the_error_names_make_aot(refusal, in_root):
    message = refusal("compile", "--config", "configs/demo.py:smoke", "--topology", "h100:8")
    assert "needs jax's CUDA plugin" in message and "`make aot`" in message
