"""The training step: accumulation, skipped updates, clipping and sharding."""

import dataclasses
import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm import config as configs
from hybridlm.models.mixers import read_mixer
from hybridlm.models.params import Model
from hybridlm.train.guard import check_update
from hybridlm.train.optimizer import make_optimizer
from hybridlm.train.state import init_state
from hybridlm.train.step import make_train_step


def tiny(**train):
    settings = dict(
        model=dict(
            width=16,
            depth=2,
            pattern="swa rec",
            vocab_size=32,
            mlp=dict(hidden=24),
            mixers=dict(
                swa=dict(kind="attention", heads=2, window=4), rec=dict(kind="rglru", heads=2)
            ),
        ),
        data=dict(sources=dict(a=dict(kind="text", path="x")), seq_len=12, batch_size=4),
        optimizer=dict(lr=0.01),
        train=dict(steps=50, **train),
    )
    return configs.read(settings)


def batch_of(config, seed=0):
    rng = np.random.default_rng(seed)
    shape = (config.train.accumulate, 4 // config.train.accumulate, 12)

    # Drawn as (4, 12) first: the tokens do not depend on the number of micro-batches.
    def ints(high):
        return jnp.asarray(rng.integers(0, high, (4, 12)), jnp.int32).reshape(shape)

    weights = jnp.asarray(rng.integers(0, 2, (4, 12)), jnp.float32).reshape(shape)
    positions = jnp.broadcast_to(jnp.arange(12, dtype=jnp.int32), shape)
    return {
        "tokens": ints(32),
        "targets": ints(32),
        "segment_ids": jnp.ones(shape, jnp.int32),
        "positions": positions,
        "loss_weights": weights,
    }


def make(config):
    model = Model.of(config.model)
    optimizer = make_optimizer(config.optimizer, model.decay, model.muon)
    state = jax.jit(lambda k: init_state(model, optimizer, k))(jax.random.key(0))
    bytes_V = np.ones(32, np.float32)
    step = make_train_step(model, optimizer, config.train, config.optimizer, bytes_V, jnp.float32)
    return state, jax.jit(step)


def test_accumulation_does_not_change_the_update():
    """1, 2 and 4 micro-batches with uneven weights have the same loss and parameters."""
    results = []
    for parts in (1, 2, 4):
        config = tiny(accumulate=parts)
        state, step = make(config)
        state, metrics = step(state, batch_of(config))
        results.append((float(metrics["loss"]), state["params"]))
    for loss, params in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(results[0][1])):
            np.testing.assert_allclose(a, b, atol=2e-5)


def with_slot_usage(weight, **train):
    """The tiny model with Native Hybrid Attention instead of attention."""
    config = tiny(**train)
    nha = dict(kind="nha", heads=2, slots=3, window=3, slot_usage_weight=weight)
    mixers = {**config.model.mixers, "swa": read_mixer(nha, "swa")}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, mixers=mixers))


def test_a_mixers_loss_is_added_and_accumulates_exactly():
    """Micro-batches differ in padding and targets; the sums do not depend on the split."""
    results = []
    for accumulate in (1, 2, 4):
        config = with_slot_usage(0.5, accumulate=accumulate)
        state, step = make(config)
        batch = batch_of(config)
        flat = np.ones((4, 12), np.int32)
        flat[0, 5:] = flat[2, 10:] = 0
        batch["segment_ids"] = jnp.asarray(flat.reshape(batch["tokens"].shape))
        batch["loss_weights"] = batch["loss_weights"] * (batch["segment_ids"] != 0)
        state, metrics = step(state, batch)
        results.append((metrics, state["params"]))
    assert float(results[0][0]["aux_loss"]) > 0
    for metrics, params in results[1:]:
        for name in ("aux_loss", "loss", "grad_norm"):
            assert float(metrics[name]) == pytest.approx(float(results[0][0][name]), rel=1e-5)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(results[0][1])):
            np.testing.assert_allclose(a, b, atol=2e-6)


def test_aux_loss_is_absent_without_a_mixers_loss():
    config = with_slot_usage(0.0)
    state, step = make(config)
    assert "aux_loss" not in jax.eval_shape(step, state, batch_of(config))[1]


def test_a_non_finite_update_is_skipped_and_counted():
    config = tiny()
    state, step = make(config)
    good, _ = step(state, batch_of(config))
    poisoned = dict(good, params=jax.tree.map(lambda p: p, good["params"]))
    poisoned["params"]["final_norm"]["scale"] = jnp.full(16, jnp.nan)
    after, metrics = step(poisoned, batch_of(config))
    assert (int(metrics["skipped"]), int(metrics["skipped_in_row"]), int(after["step"])) == (
        1,
        1,
        2,
    )
    for a, b in zip(jax.tree.leaves(after["opt_state"]), jax.tree.leaves(poisoned["opt_state"])):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(after["params"]), jax.tree.leaves(poisoned["params"])):
        np.testing.assert_array_equal(a, b)


def test_a_spike_is_skipped_and_small_changes_are_not():
    guard = {
        k: jnp.float32(0) if k.startswith("norm") else jnp.int32(0)
        for k in ("norm_mean", "norm_square", "accepted", "skipped", "skipped_in_row")
    }
    rng, loss = np.random.default_rng(0), jnp.float32(1)
    check = jax.jit(lambda guard, norm: check_update(guard, loss, norm, 6.0))
    for _ in range(60):
        ok, guard = check(guard, jnp.float32(1 + 0.1 * rng.standard_normal()))
        assert bool(ok)
    ok, guard = check(guard, jnp.float32(5.0))
    assert not bool(ok) and int(guard["skipped"]) == 1
    ok, guard = check(guard, jnp.float32(1.05))
    assert bool(ok) and int(guard["skipped_in_row"]) == 0


def test_clipping_bounds_the_gradient_and_reports_it_unclipped():
    base = tiny()
    metrics = {}
    for clip in (None, 1e-3):
        optimizer = dataclasses.replace(base.optimizer, clip_norm=clip, weight_decay=0.0)
        config = dataclasses.replace(base, optimizer=optimizer)
        state, step = make(config)
        after, metrics[clip] = step(state, batch_of(config))
        if clip:
            first_moment = after["opt_state"][0].mu
            norm = float(jnp.sqrt(sum(jnp.sum(m**2) for m in jax.tree.leaves(first_moment))))
            assert norm == pytest.approx((1 - 0.9) * clip, rel=1e-3)
    assert float(metrics[None]["grad_norm"]) == pytest.approx(float(metrics[1e-3]["grad_norm"]))


SHARDED = """
import json, math, sys
sys.path.insert(0, {here!r})
import jax, numpy as np
from test_step import batch_of, tiny
from hybridlm.models.params import Model
from hybridlm.parallel import mesh as meshes
from hybridlm.config import MeshConfig
from hybridlm.train.optimizer import make_optimizer
from hybridlm.train.state import abstract_state, init_state
from hybridlm.train.step import make_train_step
import jax.numpy as jnp
config = tiny()
shapes = dict(), dict(data=2, fsdp=2), dict(tensor=2, fsdp=2), dict(fsdp=4), dict(tensor=2)
for shape in [dict(data=1) | shape for shape in shapes]:
    devices = jax.devices()[: math.prod(shape.values())]
    mesh = meshes.make_mesh(MeshConfig(**shape), devices)
    jax.set_mesh(mesh)
    model = Model.of(config.model)
    optimizer = make_optimizer(config.optimizer, model.decay, model.muon)
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(model, optimizer, mesh))
    state = jax.jit(lambda k: init_state(model, optimizer, k), out_shardings=shardings)(jax.random.key(0))
    bytes_V = np.ones(32, np.float32)
    step = make_train_step(model, optimizer, config.train, config.optimizer, bytes_V, jnp.float32)
    step = jax.jit(step, out_shardings=(shardings, meshes.replicated(mesh)))
    batch = {{k: jax.device_put(np.asarray(v), meshes.batch_sharding(mesh)) for k, v in batch_of(config).items()}}
    losses = []
    for _ in range(4):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    q = state["params"]["unit"]["0_swa"]["mixer"]["q"]["kernel"]
    print(json.dumps([losses, str(q.sharding.spec), list(q.addressable_shards[0].data.shape)]))
"""


def test_sharded_training_is_single_device_training(root):
    """Four simulated devices, split by data, fsdp and tensor, have the same losses and shards."""
    code = textwrap.dedent(SHARDED).format(here=str(root / "tests" / "train"))
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=root,
        env={"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PATH": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    for losses, _, _ in runs[1:]:
        np.testing.assert_allclose(losses, runs[0][0], rtol=2e-5)
    assert [shape for _, _, shape in runs] == [
        [1, 16, 16],
        [1, 8, 16],
        [1, 8, 8],
        [1, 4, 16],
        [1, 16, 8],
    ]
