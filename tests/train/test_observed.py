"""The bias that balances experts moves by their load after each update, and by nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import batch_of
from test_trainable import config_of, made

from hybridlm.models.feedforward import read_feedforward
from hybridlm.models.mixers import SequenceContext

RATE = 0.25


def config(rate=RATE, freeze="", accumulate=1):
    """Four layers in two repeats, with a mixture in each; no mixers."""
    router = dict(scores="sigmoid", choice_bias=True, choice_bias_rate=rate)
    mlp = read_feedforward(dict(kind="moe", experts=4, top_k=2, hidden=6, router=router), "mlp")
    base = config_of(dict(freeze=freeze, name="muon"), accumulate=accumulate)
    model = dataclasses.replace(base.model, feedforwards=dict(a=mlp, b=mlp))
    return dataclasses.replace(base, model=model)


def biases(model, params):
    return np.stack(
        [np.asarray(model.layer(params, i)["mlp"]["router"]["choice_bias"]) for i in range(4)]
    )


def step_of(settings, batch=None):
    model, _, state, step = made(settings)
    after, metrics = step(state, batch_of(settings) if batch is None else batch)
    return model, state["params"], after["params"], metrics


def counts(model, params, batch):
    """The tokens of each expert in each layer, from the routers' own choice."""
    module, flat = model.bind(params), {k: np.asarray(v).reshape(4, 12) for k, v in batch.items()}
    context = SequenceContext(flat["segment_ids"], flat["positions"])

    def routed(index, block, x_BTD, y_BTD, context):
        return block.mlp.router(block.mlp_norm(x_BTD), context.segment_ids_BT).counts_E

    x_BTD = module.embed(flat["tokens"])
    return np.stack(jax.jit(lambda x: module.map_layers(x, context, routed)[1])(x_BTD))


def padded(settings):
    batch = batch_of(settings)
    return batch | dict(segment_ids=batch["segment_ids"].at[..., 9:].set(0))


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_bias_moves_by_the_sign_of_the_load_error_of_the_whole_batch(accumulate):
    settings = config(accumulate=accumulate)
    batch = padded(settings)
    model, before, after, metrics = step_of(settings, batch)
    load = counts(model, before, batch)
    assert load.sum() == 4 * 4 * 9 * 2  # layers, rows, tokens without padding, experts of a token
    moved = RATE * np.sign(load.mean(-1, keepdims=True) - load)
    assert np.abs(moved).max() == RATE
    np.testing.assert_allclose(biases(model, after), biases(model, before) + moved, atol=1e-6)
    violation = (load / load.mean(-1, keepdims=True)).max() - 1
    assert float(metrics["expert_violation"]) == pytest.approx(violation, rel=1e-5)


@pytest.mark.slow
def test_other_parameters_and_the_gradient_norm_do_not_see_the_observation():
    model, _, moved, metrics = step_of(config())
    _, before, still, expected = step_of(config(rate=0.0))
    np.testing.assert_array_equal(biases(model, still), biases(model, before))
    assert float(metrics["grad_norm"]) == pytest.approx(float(expected["grad_norm"]), rel=1e-6)
    names = [n for n in model.by_name(moved) if not n.endswith("choice_bias")]
    for name in names:
        found, wanted = model.by_name(moved)[name], model.by_name(still)[name]
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=name)


def test_a_skipped_update_moves_no_bias():
    settings = config()
    batch = batch_of(settings)
    model, before, after, metrics = step_of(
        settings, batch | dict(loss_weights=batch["loss_weights"] * jnp.nan)
    )
    assert int(metrics["skipped"]) == 1
    np.testing.assert_array_equal(biases(model, after), biases(model, before))


@pytest.mark.slow
def test_a_frozen_bias_does_not_move():
    model, before, after, _ = step_of(config(freeze="layers.[0123].mlp.router.*|layers.2.*"))
    np.testing.assert_array_equal(biases(model, after), biases(model, before))
    model, before, after, _ = step_of(config(freeze="layers.2.mlp.router.choice_bias"))
    same = (biases(model, after) == biases(model, before)).all(-1)
    assert same.tolist() == [False, False, True, False]
