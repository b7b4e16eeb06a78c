"""The divergence to a teacher, and its gradients, are those of the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm.distill.kl import KLSettings, summed_divergence
from hybridlm.models.loss import LossSettings, summed_cross_entropy


def drawn(seed, batch=2, time=11, width=6, taught=5, vocab=13):
    rng = np.random.default_rng(seed)
    return dict(
        hidden_BTD=rng.standard_normal((batch, time, width)),
        head_DV=rng.standard_normal((width, vocab)),
        teacher_hidden_BTE=rng.standard_normal((batch, time, taught)),
        teacher_head_EV=rng.standard_normal((taught, vocab)),
        targets_BT=rng.integers(0, vocab, (batch, time)),
        weights_BT=(rng.random((batch, time)) < 0.7).astype(np.float32),
    )


def formula(x, settings):
    def logits(hidden, head, of):
        z = hidden @ head * of.logit_scale
        return (
            z if of.logit_soft_cap is None else of.logit_soft_cap * jnp.tanh(z / of.logit_soft_cap)
        )

    z = logits(x["hidden_BTD"], x["head_DV"], settings.student)
    wanted = logits(x["teacher_hidden_BTE"], x["teacher_head_EV"], settings.teacher)
    heat = settings.temperature
    p, q = jax.nn.softmax(wanted / heat), jax.nn.softmax(z / heat)
    kl = jnp.sum(p * (jnp.log(p) - jnp.log(q)), axis=-1)
    normalizer = jax.nn.logsumexp(z, axis=-1)
    nll = normalizer - jnp.take_along_axis(z, x["targets_BT"][..., None], axis=-1)[..., 0]
    ce = nll + settings.student.z_loss * normalizer**2
    total = (1 - settings.ce_weight) * heat**2 * kl + settings.ce_weight * ce
    return tuple(jnp.sum(value * x["weights_BT"]) for value in (total, nll, kl))


def summed(x, settings):
    return summed_divergence(**x, settings=settings)


def _gradient(function, x, name, settings):
    return jax.grad(lambda y: function({**x, name: y}, settings)[0])(x[name])


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_sums_and_gradients_are_the_formula_s(seed):
    rng = np.random.default_rng(seed)
    settings = KLSettings(
        LossSettings(logit_soft_cap=4.0, z_loss=0.1, logit_scale=0.7),
        LossSettings(logit_scale=1.3),
        temperature=float(rng.uniform(0.5, 3)),
        ce_weight=float(rng.uniform(0.1, 0.9)),
    )
    with jax.enable_x64(True):
        x = jax.tree.map(jnp.asarray, drawn(seed))
        np.testing.assert_allclose(summed_divergence(**x, settings=settings), formula(x, settings))
        for name in ("hidden_BTD", "head_DV"):
            one, other = (_gradient(f, x, name, settings=settings) for f in (summed, formula))
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_the_teacher_itself_has_no_divergence_and_no_gradient():
    x = drawn(5, taught=6)
    x |= dict(teacher_hidden_BTE=x["hidden_BTD"], teacher_head_EV=x["head_DV"])
    x = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32 if v.dtype.kind == "f" else None), x)
    value, grad = jax.value_and_grad(lambda y: summed_divergence(**{**x, "hidden_BTD": y}).total)(
        x["hidden_BTD"]
    )
    assert abs(value) < 1e-6 and np.abs(grad).max() < 1e-6


def test_weight_1_is_the_cross_entropy():
    x = {n: np.asarray(v, np.float32) if v.dtype.kind == "f" else v for n, v in drawn(7).items()}
    found = summed_divergence(**x, settings=KLSettings(ce_weight=1.0))
    expected, nll = summed_cross_entropy(
        *(x[n] for n in ("hidden_BTD", "head_DV", "targets_BT", "weights_BT"))
    )
    np.testing.assert_allclose([found.total, found.nll], [expected, nll], rtol=1e-6)


def test_no_gradient_reaches_the_teacher():
    x = {n: np.asarray(v, np.float32) if v.dtype.kind == "f" else v for n, v in drawn(8).items()}
    for name in ("teacher_hidden_BTE", "teacher_head_EV"):
        grad = _gradient(summed, x, name, settings=KLSettings())
        assert not np.any(grad)
