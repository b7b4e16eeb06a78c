"""Frozen parameters, learning rates by parameter, and the moving average, in the training step."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import batch_of, tiny

from hybridlm.analysis.cost import memory
from hybridlm.errors import ConfigError
from hybridlm.models.feedforward import read_feedforward
from hybridlm.models.params import Model
from hybridlm.train.optimizer import optimizer_of
from hybridlm.train.settings import LrMultiplier
from hybridlm.train.state import begin
from hybridlm.train.step import make_train_step

OPTIMIZERS = [dict(name="adamw"), dict(name="muon", muon_lr=0.02), dict(name="adafactor")]
# Whole arrays, and rows of arrays that layers share.
FREEZE = "embedding|layers.[02].mlp.up|layers.1.mlp.gate|*_norm|!final_norm"
SMALL, LARGE = "none+a none+b", "swa+a rec+b"  # the small model compiles in a second


def config_of(optimizer=None, pattern=SMALL, **train):
    """Two layers, twice, with the optimizer's settings changed."""
    config = tiny(**train)
    mlp = read_feedforward(dict(kind="swiglu", hidden=12), "")
    model = dataclasses.replace(
        config.model, pattern=pattern, depth=4, feedforwards=dict(a=mlp, b=mlp)
    )
    optimizer = dataclasses.replace(config.optimizer, **(optimizer or {}))
    return dataclasses.replace(config, model=model, optimizer=optimizer)


def is_frozen(name):
    """What `FREEZE` says."""
    starts = ("embedding", "layers.0.mlp.up", "layers.2.mlp.up", "layers.1.mlp.gate")
    return name.startswith(starts) or "_norm." in name and not name.startswith("final_norm")


def made(config):
    """(model, trainable, first state, step); parameters are drawn by numpy, without a compiler."""
    model = Model.of(config.model)
    trainable, optimizer = optimizer_of(config.optimizer, model)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape) / 4, x.dtype), model.abstract
    )
    state = begin(params, optimizer, trainable, config.train.ema_decay is not None)
    bytes_V = np.ones(32, np.float32)
    step = make_train_step(model, optimizer, config.train, config.optimizer, bytes_V, jnp.float32)
    return model, trainable, state, jax.jit(step)


def trained(config, steps=3):
    """(model, first state, the states after each step, the metrics of the last)."""
    model, _, first, step = made(config)
    states, state = [], first
    for seed in range(steps):
        state, metrics = step(state, batch_of(config, seed))
        states.append(state)
    return model, first, states, metrics


def by_name(model, state):
    return {name: np.asarray(x) for name, x in model.by_name(state["params"]).items()}


@pytest.mark.parametrize(
    "optimizer, pattern",
    [
        (OPTIMIZERS[0], SMALL),
        *(pytest.param(optimizer, SMALL, marks=pytest.mark.slow) for optimizer in OPTIMIZERS[1:]),
        *(pytest.param(optimizer, LARGE, marks=pytest.mark.slow) for optimizer in OPTIMIZERS),
    ],
    ids=lambda x: x if isinstance(x, str) else x["name"],
)
def test_frozen_parameters_keep_their_bits_and_the_others_move(optimizer, pattern):
    """With weight decay, and in micro-batches."""
    config = config_of({**optimizer, "freeze": FREEZE, "weight_decay": 0.5}, pattern, accumulate=2)
    model, first, states, _ = trained(config)
    before, after = by_name(model, first), by_name(model, states[-1])
    moved = {name for name in before if np.any(before[name] != after[name])}
    assert moved == {name for name in before if not is_frozen(name)}


def test_frozen_parameters_have_no_moments():
    model, trainable, state, _ = made(config_of(dict(freeze=FREEZE)))
    moments = state["opt_state"][0].mu
    left = [x for name, x in model.by_name(model.abstract).items() if not is_frozen(name)]
    count = sum(x.size for x in left)
    assert sum(x.size for x in jax.tree.leaves(moments)) == trainable.count(model) == count
    assert "embedding" not in moments and "up" not in moments["unit"]["0_none+a"]["mlp"]
    assert moments["unit"]["1_none+b"]["mlp"]["gate"]["kernel"].shape == (1, 16, 12)


def test_the_estimate_of_memory_is_that_of_the_state():
    config = config_of(dict(freeze=FREEZE), ema_decay=0.9)
    model, trainable, state, _ = made(config)
    found = memory(config, model)
    sizes = {key: sum(x.nbytes for x in jax.tree.leaves(state[key])) for key in state}
    assert (found.parameters, found.optimizer, found.ema) == (
        sizes["params"],
        sizes["opt_state"],
        sizes["ema"],
    )
    assert found.gradients == found.ema == 4 * trainable.count(model) < found.parameters


@pytest.mark.slow
def test_the_gradient_norm_is_of_the_trained_parameters():
    """The norms of two parts add up in squares to that of the whole."""
    names = "embedding|*.gate|layers.1"
    norms = []
    for freeze in ("", names, "*|!" + "|!".join(names.split("|"))):
        _, _, _, metrics = trained(config_of(dict(freeze=freeze), LARGE), steps=1)
        norms.append(float(metrics["grad_norm"]))
    whole, *parts = norms
    assert np.hypot(*parts) == pytest.approx(whole, rel=1e-5)
    assert min(parts) > 0.01 * whole


@pytest.mark.slow
def test_no_gradient_of_frozen_arrays_is_computed():
    """The program has no matrix product for the gradient of three kernels of a frozen array."""

    def flops(freeze):
        config = config_of(dict(freeze=freeze))
        _, _, state, step = made(config)
        return step.lower(state, batch_of(config)).compile().cost_analysis()["flops"]

    tokens, kernels = 4 * 12, 3 * 16 * 12  # XLA counts the body of the loop over repeats once
    assert flops("") - flops("layers.[02].mlp") >= 2 * tokens * kernels


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [SMALL, LARGE])
def test_accumulation_does_not_change_the_update_of_a_part(pattern):
    whole, halves = [
        trained(config_of(dict(freeze=FREEZE), pattern, accumulate=parts), steps=1)[2][0]["params"]
        for parts in (1, 2)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), whole, halves)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o["name"])
def test_a_multiplier_of_all_parameters_is_a_higher_rate(optimizer):
    """The same bits with any factor, with weight decay; Muon's rate is a quotient of two."""
    factor = float(np.random.default_rng().uniform(0.1, 3))
    scaled = {key: factor * rate for key, rate in optimizer.items() if key == "muon_lr"}
    multiplier = LrMultiplier("*", factor)
    one = config_of({**optimizer, "lr_multipliers": (multiplier,), "warmup_steps": 2})
    two = config_of({**optimizer, **scaled, "lr": one.optimizer.lr * factor, "warmup_steps": 2})
    (_, _, found, _), (_, _, expected, _) = trained(one), trained(two)
    near = dict(rtol=1e-5, atol=1e-6) if optimizer["name"] == "muon" else dict(rtol=0, atol=0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **near),
        found[-1]["params"],
        expected[-1]["params"],
    )


def test_the_first_multiplier_that_matches_counts_for_each_layer():
    """The first update of Adam is the rate times the gradient's sign."""
    entries = (LrMultiplier("layers.2", 0.25), LrMultiplier("layers", 2.0))
    settings = dict(weight_decay=0.0, lr=0.01, schedule="constant", eps=1e-30, freeze="layers.0")
    config = config_of(dict(settings, lr_multipliers=entries))
    model, first, states, _ = trained(config, steps=1)
    before, after = by_name(model, first), by_name(model, states[0])
    for name, value in before.items():
        factor = {"layers.0": 0, "layers.2": 0.25}.get(name[:8], 2 if name[:6] == "layers" else 1)
        change = np.abs(after[name] - value).max()
        assert change == pytest.approx(0.01 * factor, rel=1e-3), name


@pytest.mark.parametrize(
    "decay, freeze", [(0.9, FREEZE), pytest.param(0.5, "", marks=pytest.mark.slow)]
)
def test_the_moving_average_is_that_of_float64(decay, freeze):
    """Of the parameters after each update; a skipped update does not count."""
    config = config_of(dict(freeze=freeze, lr=0.05), ema_decay=decay)
    _, trainable, state, step = made(config)
    start = state["ema"]
    jax.tree.map(np.testing.assert_array_equal, start, trainable.take(state["params"]))
    totals, weights = jax.tree.map(lambda x: np.zeros(x.shape), start), 0.0
    for seed in range(6):
        batch, before = batch_of(config, seed), state["ema"]
        if seed in (0, 3):
            batch["loss_weights"] = batch["loss_weights"] * jnp.nan
        state, metrics = step(state, batch)
        if seed in (0, 3):
            assert int(metrics["skipped_in_row"]) == 1
            jax.tree.map(np.testing.assert_array_equal, state["ema"], before)
            continue
        part = trainable.take(state["params"])
        totals = jax.tree.map(lambda t, p: decay * t + np.asarray(p, np.float64), totals, part)
        weights = decay * weights + 1
        expected = jax.tree.map(lambda t, w=weights: t / w, totals)
        near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
        jax.tree.map(near, state["ema"], expected)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(freeze="layers.4"), "optimizer.freeze has 'layers.4', which matches no name: near"),
        (dict(freeze="*"), "freezes every parameter"),
        (dict(lr_multipliers=(LrMultiplier("heads", 2.0),)), "lr_multipliers[0].parameters has"),
        (
            dict(lr_multipliers=(LrMultiplier("*", 2.0), LrMultiplier("embedding", 3.0))),
            "lr_multipliers[1].parameters is 'embedding', and earlier entries match all",
        ),
    ],
)
def test_globs_that_do_not_fit_the_model_are_refused(settings, message):
    config = config_of(settings)
    with pytest.raises(ConfigError) as caught:
        optimizer_of(config.optimizer, Model.of(config.model))
    assert message in str(caught.value)


SHARDED = """
import json, sys
sys.path.insert(0, {here!r})
import jax, numpy as np
from test_trainable import FREEZE, LARGE, batch_of, config_of
from hybridlm.config import MeshConfig
from hybridlm.parallel import mesh as meshes
from hybridlm.train.setup import lower_step
import dataclasses
for shape in dict(), dict(fsdp=2), dict(tensor=2):
    config = config_of(dict(freeze=FREEZE), LARGE, ema_decay=0.9)
    config = dataclasses.replace(config, mesh=MeshConfig(**(dict(data=1) | shape)))
    devices = jax.devices()[: len(shape) + 1]
    lowered = lower_step(config, np.ones(32, np.float32), devices)
    step, state = lowered.step.compile(), lowered.init_state(0)
    sharding = meshes.batch_sharding(lowered.mesh)
    losses, first = [], state["params"]["embedding"].copy()
    for seed in range(4):
        batch = {{k: jax.device_put(np.asarray(v), sharding) for k, v in batch_of(config, seed).items()}}
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.array_equal(first, state["params"]["embedding"])
    kernel = lambda tree: tree["unit"]["1_rec+b"]["mlp"]["gate"]["kernel"]
    shards = [kernel(t).addressable_shards[0].data.shape for t in (state["params"], state["ema"])]
    sums = [float(np.sum(np.abs(x))) for x in jax.tree.leaves(state["ema"])]
    print(json.dumps([losses, sums, shards]))
"""


@pytest.mark.slow
def test_two_devices_train_the_same_part(root):
    """Frozen rows and the average are split as their parameters; the numbers are one device's."""
    done = subprocess.run(
        [sys.executable, "-c", SHARDED.format(here=str(root / "tests" / "train"))],
        capture_output=True,
        text=True,
        cwd=root,
        env={
            "JAX_PLATFORMS": "cpu",
            "PATH": "",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2"
            " --xla_backend_optimization_level=0",
        },
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, *split = [json.loads(line) for line in done.stdout.splitlines()]
    for losses, sums, _ in split:
        np.testing.assert_allclose(losses, one[0], rtol=2e-5)
        np.testing.assert_allclose(sums, one[1], rtol=2e-4)
    assert one[2] == [[2, 16, 12], [1, 16, 12]]
    assert [shards for *_, shards in split] == [
        [[2, 8, 12], [1, 8, 12]],
        [[2, 16, 6], [1, 16, 6]],
    ]
