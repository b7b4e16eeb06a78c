"""Law 6 over time for the ops of `kernels_pallas.context`, in processes with simulated devices."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas import context
from kernels_pallas.attention import empty_state

HERE = pathlib.Path(__file__).parent

START = """
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
import context_cases as cases
from kernels_pallas.context import halo

mesh = jax.make_mesh(({devices},), (cases.AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
rng = np.random.default_rng(0)
"""
EQUAL = """
for name in {names}:
    print(name, cases.check(name, rng, mesh, {time}, **dict({options})))
"""
CONTAINED = """
for name in {names}:
    print(name)
    for _ in range({draws}):
        cases.check_contained(name, rng, mesh, 48)
"""
NEVER_GATHERS = """
jax.config.update("jax_enable_x64", False)
for name in {names}:
    print(name, cases.check_never_gathers(name, rng, mesh, 37))
"""
FAULTS = """
import importlib

def caught(name, module, attribute, fault):
    module = importlib.import_module("kernels_pallas.context." + module)
    original = getattr(module, attribute)
    setattr(module, attribute, fault)
    try:
        cases.check(name, rng, mesh, 48)
    except AssertionError:
        return
    finally:
        setattr(module, attribute, original)
    raise SystemExit(name + ": not caught: " + attribute)

# Two documents with the same id become one.
caught("attention", "attention", "document_numbers", lambda ids, axis: ids)
# The initial state is dropped.
caught("causal_conv", "causal_conv", "halo", lambda x, n, axis, before: halo.halo(x, n, axis))
# A shard's entering state depends only on its neighbour.
caught(
    "linear_recurrence", "recurrence", "entering_state",
    lambda decay, end, first, multiply, axis:
        halo.of_first_shard(first, halo.from_left(end, 1, axis), axis),
)
# A state passes through the end of its document.
caught("gated_recurrence", "recurrence", "_unbroken", lambda ids, before: before == before)
"""

QUICK = (
    "attention",
    "attention, window over neighbours",
    "causal_conv",
    "linear_recurrence",
    "gated_recurrence",
    "gated_linear, channel",
    "delta_rule, head",
)
ALL = "cases.CASES"


def run_on_devices(devices: int, program: str, **values) -> str:
    """The output of the program, run in its own process."""
    environment = os.environ | dict(
        JAX_PLATFORMS="cpu",
        XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}"
        " --xla_backend_optimization_level=0",
        PYTHONPATH=os.pathsep.join([str(HERE), str(HERE.parents[1])]),
    )
    program = START.format(devices=devices) + program.format(**values)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


RING_OF_KERNELS = """
from kernels_pallas import dispatch, testing
from kernels_pallas.attention import tpu, tpu_older

jax.config.update("jax_enable_x64", False)
tpu.BLOCK_SIZES = tpu.BlockSizes(slice=8, tile=8, block=16, short=32, size=4)
tpu.vmem_mib = lambda time, slots, *_: 0 if time + slots <= {keys} else tpu.VMEM_MIB + 1
ran = []
outputs = tpu_older.Rectangle.outputs
tpu_older.Rectangle.outputs = lambda *given: ran.append(None) or outputs(*given)
with dispatch.kernels_for("tpu", True), jax.default_matmul_precision("highest"):
    for name in ("attention", "attention, capped"):
        case = cases.CASES[name]
        ids = cases.documents(rng, {time}, mesh.shape[cases.AXIS])
        drawn = cases.arguments(case, rng, {time}, ids, False, np.float32)
        single = cases.runners(case, mesh, True, False, "reference")[0](*drawn)
        ring = cases.runners(case, mesh, True, False, "pallas")[1](*drawn)
        testing.assert_close(name, jax.device_get(ring), jax.device_get(single), 1e-5)
assert ran
"""
OVERFLOW = """
from kernels_pallas import dispatch
from kernels_pallas.attention import tpu

jax.config.update("jax_enable_x64", False)
tpu.BLOCK_SIZES = tpu.BlockSizes(slice=8, tile=8, block=16, short=32, size=4)
case = cases.attention_case(stateful=False)
ids = np.repeat([1, 2], [20, 44])[None].repeat(6, 0)
with dispatch.kernels_for("tpu", True), jax.default_matmul_precision("highest"):
    inputs, *drawn = cases.arguments(case, rng, 64, jax.numpy.asarray(ids), False, np.float32)
    # A logit of finite numbers that is not finite, of a key in the first shard and a query in the second.
    inputs |= dict(k=inputs["k"].at[:, 28].set(1e25), q=inputs["q"].at[:, 40].set(1e25))
    found = jax.device_get(cases.runners(case, mesh, True, False, "pallas")[1](inputs, *drawn))
gradients = found["gradients"][0]
assert np.isnan(found["outputs"]["out"][:, 40]).any()
for name in "qkv":
    assert np.isfinite(gradients[name][:, :20]).all(), name
"""


def test_the_ring_of_tpu_kernels_is_single_device():
    """VMEM holds the 40 keys of a shard, or (slow) spans of 32 or 16."""
    run_on_devices(4, RING_OF_KERNELS, time=160, keys=48)


def test_an_overflow_in_the_ring_of_tpu_kernels_stays_in_its_document():
    run_on_devices(2, OVERFLOW)


@pytest.mark.slow
@pytest.mark.parametrize("time, keys", [(160, 32), (132, 16), (20, 16)])
def test_the_ring_of_tpu_kernels_is_single_device_at_other_lengths(time, keys):
    run_on_devices(4, RING_OF_KERNELS, time=time, keys=keys)


def test_sharded_over_time_is_single_device():
    run_on_devices(4, EQUAL, names=QUICK, time=48, options={})


def test_no_collective_moves_the_sequence():
    run_on_devices(4, NEVER_GATHERS, names=QUICK)


def test_planted_faults_are_caught():
    run_on_devices(4, FAULTS)


@pytest.mark.slow
def test_nan_of_a_document_spoils_what_it_does_on_a_single_device():
    run_on_devices(4, CONTAINED, names=ALL, draws=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "devices, time, options",
    [
        (4, 48, {}),
        (8, 64, {}),
        (3, 33, {}),
        (4, 4, {}),
        (2, 600, {}),
        (1, 20, {}),
        (4, 48, dict(with_ids=False)),
        (4, 48, dict(with_ids=False, with_state=False)),
        (4, 48, dict(with_state=False, impl="reference")),
    ],
)
def test_sharded_over_time_is_single_device_more_widely(devices, time, options):
    run_on_devices(devices, EQUAL, names=ALL, time=time, options=options)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_no_collective_moves_the_sequence_of_any_case(devices):
    run_on_devices(devices, NEVER_GATHERS, names=ALL)


def test_attention_refuses_what_it_cannot_shard():
    x = jnp.ones((1, 4, 2, 3))
    with pytest.raises(ValueError, match="a window that is an array is not supported"):
        context.attention(x, x, x, axis="context", window=jnp.int32(3))
    with pytest.raises(ValueError, match="a state needs a window"):
        context.attention(x, x, x, axis="context", initial_state=empty_state(1, 2, 2, 3, 3))
    with pytest.raises(ValueError, match="a state needs a window"):
        context.attention(x, x, x, axis="context", return_state=True)
    with pytest.raises(NameError, match="unbound axis name"):
        jax.jit(lambda x: context.attention(x, x, x, axis="context"))(x)
