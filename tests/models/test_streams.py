"""Hyper-connections: several residual streams, mixed anew for each token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from hybridlm.analysis.layers import attention_rows
from hybridlm.models.accounting import (
    layer_table,
    train_flops_per_token,
    work_counter,
)
from hybridlm.models.hooks import Hooks
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.streams import Connection, StreamsConfig, read, write
from hybridlm.settings.reader import Invalid

TIME = 14
PIECES = [5, 1, 1, 5, 1, 1]
STREAMS = dict(count=3, iterations=4, eps=1e-3)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_a_half_reads_and_writes_the_streams_as_stated():
    """One token after the other, with loops over streams, in float64."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        config = StreamsConfig(**STREAMS)
        module = Connection(config, 4, 1e-5, rngs=nnx.Rngs(0))
        kernel, bias = rng.standard_normal((12, 15)), rng.standard_normal(15)
        scales = rng.standard_normal(3)
        module.kernel[...], module.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
        module.scales[...] = jnp.asarray(scales)
        x, y = rng.standard_normal((1, 2, 3, 4)), rng.standard_normal((1, 2, 4))
        weights = module.weights(jnp.asarray(x))
        found_read = read(jnp.asarray(x), weights)
        found = write(jnp.asarray(x), weights, jnp.asarray(y))
    for t in range(2):
        flat = x[0, t].reshape(-1)
        made = flat / np.sqrt(np.mean(flat**2) + 1e-5) @ kernel
        into = sigmoid(made[:3] * scales[0] + bias[:3]) + 1e-3
        out = 2 * sigmoid(made[3:6] * scales[1] + bias[3:6])
        mix = np.exp((made[6:] * scales[2] + bias[6:]).reshape(3, 3))
        mix = mix / mix.sum(1, keepdims=True) + 1e-3
        mix = mix / (mix.sum(0, keepdims=True) + 1e-3)
        for _ in range(3):
            mix = mix / (mix.sum(1, keepdims=True) + 1e-3)
            mix = mix / (mix.sum(0, keepdims=True) + 1e-3)
        np.testing.assert_allclose(found_read[0, t], into @ x[0, t], rtol=1e-9)
        for m in range(3):
            mixed = sum(mix[n, m] * x[0, t, n] for n in range(3))
            np.testing.assert_allclose(found[0, t, m], out[m] * y[0, t] + mixed, rtol=1e-9)


def test_decoding_and_packing_are_exact_and_the_scan_changes_nothing():
    config = small.model_config("swa rec", depth=5, streams=STREAMS)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 40, (1, TIME)).astype(np.int32)
    ids = np.asarray([[1] * 6 + [2] * 8])
    with jax.enable_x64(True):
        model, params = small.make(config, dtype=jnp.float64)
        context = small.context(ids)

        @jax.jit
        def logits(params, tokens, context):
            module = model.bind(params)
            return module.logits(module.hidden(tokens, context, dtype=jnp.float64))

        extend = jax.jit(lambda params, *rest: model.bind(params).extend(*rest, dtype=jnp.float64))
        packed = logits(params, tokens, context)
        alone = logits(params, np.roll(tokens, -6, 1), small.context([[1] * 8 + [0] * 6]))
        np.testing.assert_allclose(alone[:, :8], packed[:, 6:], atol=1e-10)
        state, found, start = model.bind(params).init_decode(1, TIME, jnp.float64), [], 0
        for n in PIECES:
            piece = SequenceContext(*(x[:, start : start + n] for x in context[:2]))
            made, state = extend(params, tokens[:, start : start + n], piece, state)
            found.append(made)
            start += n
        np.testing.assert_allclose(np.concatenate(found, 1), packed, atol=1e-10)
        module = model.bind(params)
        unrolled = module.hidden(tokens, context, dtype=jnp.float64, scan=False)
        np.testing.assert_allclose(module.logits(unrolled), packed, atol=1e-10)


def test_probes_and_analyses_read_what_the_mixers_read():
    """`Block.mixer_input` in a walk over the layers is the norm of the streams that the layer read."""
    config = small.model_config(
        "swa none+mlp",
        depth=4,
        streams=dict(STREAMS, count=2),
        mixers=dict(swa=small.MIXERS["swa"]),
        feedforwards=dict(mlp=dict(hidden=9)),
    )
    tokens = np.random.default_rng(2).integers(0, 40, (1, TIME)).astype(np.int32)
    ids = jnp.asarray([[1] * 6 + [2] * 8])
    model, params = small.make(config)

    @jax.jit
    def run(params):
        module, hooks = model.bind(params), Hooks(lambda name: True)
        context = small.context(ids)
        module.hidden(tokens, context._replace(hooks=hooks))
        found = module.map_layers(
            module.embed(tokens),
            context,
            lambda index, block, x_BTD, y_BTD, context: block.mixer_input(x_BTD, context),
        )[1]
        return found, hooks.kept

    found, kept = run(params)
    names = [f"blocks.{i}.{('ln1.hook_normalized', 'hook_resid_pre')[i % 2]}" for i in range(4)]
    for x_BTD, name in zip(found, names, strict=True):
        np.testing.assert_allclose(x_BTD, kept[name], atol=1e-5, err_msg=name)
    every = jnp.arange(TIME)[None]
    rows = attention_rows(model, params, tokens, ids, every, [2], jnp.float32)
    np.testing.assert_allclose(rows[2], kept["blocks.2.attn.hook_pattern"], atol=1e-5)


def test_parameters_and_work_are_counted():
    layers = dict(
        mixers={name: small.MIXERS[name] for name in ("swa", "rec")},
        feedforwards=dict(mlp=dict(hidden=9)),
    )
    pattern = "swa+none none+mlp rec"
    model, _ = small.make(small.model_config(pattern, streams=STREAMS, **layers))
    rows = layer_table(model, 16)
    assert sum(row.parameters for row in rows) == model.count()
    counted = work_counter(model)(np.ones((1, 16), np.int32)).flops
    assert counted == pytest.approx(16 * train_flops_per_token(model, 16), rel=1e-12)
    plain, _ = small.make(small.model_config(pattern, **layers))
    # Four halves: their kernels, and the sums over streams.
    more = 4 * 2 * (3 * 32 * 15 + 5 * 3 * 32)
    assert train_flops_per_token(model, 16) - train_flops_per_token(plain, 16) == 3 * more


def test_bad_settings_are_one_sentence():
    for change in (dict(block="sandwich"), dict(residual_scale=0.5), dict(per_layer=dict(size=3))):
        with pytest.raises(Invalid, match="goes with(out)? "):
            small.model_config("swa rec", streams=STREAMS, **change)
