"""A mixture of experts computes its equation, each token by itself, and counts its cost."""

import jax
import jax.numpy as jnp
import moe_reference as reference
import numpy as np
import pytest
import small
from flax import nnx

from hybridlm.errors import ConfigError
from hybridlm.models.feedforward import read_feedforward
from hybridlm.models.mixers import LayerSpec
from hybridlm.parallel import experts as experts_module

WIDTH = 8
SPEC = LayerSpec(WIDTH, 1e-6, 0.7)


class Drawn:
    """A mixture with drawn parameters and tokens, as functions of (parameters, x)."""

    def __init__(self, settings, seed, dtype=jnp.float64, batch=2, time=9):
        rng = np.random.default_rng(seed)
        self.settings = settings
        self.config = read_feedforward(settings, "mlp")
        module = self.config.build(SPEC, rngs=nnx.Rngs(seed))
        self.graphdef, self.state = nnx.split(module)
        self.params = jax.tree.map(
            lambda p: jnp.asarray(p + 0.3 * rng.standard_normal(p.shape), dtype),
            nnx.to_pure_dict(self.state),
        )
        self.ids = small.random_segments(rng, batch, time)
        self.ids[0, -1] = 0
        self.x = jnp.asarray(rng.standard_normal((batch, time, WIDTH)), dtype)
        self.cotangent = jnp.asarray(rng.standard_normal(self.x.shape), dtype)

    def bind(self, params):
        state = jax.tree.map(lambda x: x, self.state)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self.graphdef, state)

    def run(self, params, x, ids=None):
        ids = self.ids if ids is None else ids
        return self.bind(params).with_loss(x, small.context(ids))

    def reference(self):
        """`run` by loops. The experts are chosen here, outside the function that is traced."""
        x_ND, real_N = np.asarray(self.x).reshape(-1, WIDTH), self.ids.reshape(-1) != 0
        with jax.numpy_rank_promotion("allow"):
            chosen = reference.choose(self.settings, self.params["router"], x_ND, real_N)

        @jax.numpy_rank_promotion("allow")
        def run(params, x):
            y_ND, loss = reference.mixture(
                self.settings, params, x.reshape(-1, WIDTH), chosen, real_N
            )
            return y_ND.reshape(x.shape), loss

        return run

    def value_and_grads(self, function):
        def objective(params, x):
            y, loss = function(params, x)
            return jnp.sum(y * self.cotangent) + loss, (y, loss)

        (_, made), grads = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(
            self.params, self.x
        )
        return made, grads


def check_law(seed):
    with jax.enable_x64(True):
        drawn = Drawn(reference.draw(np.random.default_rng(seed)), seed)
        (y, loss), grads = drawn.value_and_grads(drawn.run)
        (y0, loss0), grads0 = drawn.value_and_grads(drawn.reference())
    for ours, theirs in zip(
        jax.tree.leaves((y, loss, grads)), jax.tree.leaves((y0, loss0, grads0))
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10, err_msg=drawn.settings)


@pytest.mark.parametrize("seed", range(2))
def test_it_is_the_reference_forward_and_every_gradient(seed):
    check_law(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 115))
def test_it_is_the_reference_with_any_options(seed):
    check_law(seed)


PLAIN = dict(kind="moe", experts=6, top_k=2, hidden=5)
SHARED = PLAIN | dict(shared_hidden=4, bias=True, router=dict(scores="sigmoid", normalize=True))


@pytest.mark.parametrize("fault", ["order", "places", "sizes"])
def test_the_law_finds_a_wrong_place(fault, monkeypatch):
    sort = experts_module.sort_rows

    def wrong(*arguments):
        found = sort(*arguments)
        return {
            "order": found._replace(order_X=found.order_X[::-1]),
            "places": found._replace(places_NK=jnp.roll(found.places_NK, 1)),
            "sizes": found._replace(sizes_E=jnp.roll(found.sizes_E, 1)),
        }[fault]

    monkeypatch.setattr(experts_module, "sort_rows", wrong)
    with pytest.raises(AssertionError):
        check_law(0)


@pytest.mark.parametrize(
    "settings",
    [SHARED, pytest.param(PLAIN, marks=pytest.mark.slow)],
    ids=["shared", "plain"],
)
def test_a_token_has_the_same_output_alone_and_in_any_batch(settings):
    drawn = Drawn(settings, 1, jnp.float32, batch=3, time=40)
    together, _ = jax.jit(drawn.run)(drawn.params, drawn.x)
    run_alone = jax.jit(lambda params, x: drawn.run(params, x, np.ones((1, 1), np.int32)))
    for row, t in ((0, 0), (1, 17), (2, 30)):
        one = drawn.x[row : row + 1, t : t + 1]
        alone, _ = run_alone(drawn.params, one)
        np.testing.assert_allclose(alone[0, 0], together[row, t], rtol=2e-5, atol=2e-6)


def test_tokens_that_all_choose_one_expert_are_not_dropped():
    drawn = Drawn(PLAIN | dict(top_k=1), 2, jnp.float32, batch=2, time=80)
    drawn.ids[:] = 1
    drawn.params["router"]["kernel"] = jnp.zeros((WIDTH, 6)).at[:, 3].set(1)
    y, _ = jax.jit(drawn.run)(drawn.params, jnp.abs(drawn.x))
    assert np.all(np.any(np.asarray(y) != 0, axis=-1))


@pytest.mark.parametrize("settings", [PLAIN, SHARED], ids=["plain", "shared"])
def test_a_nan_reaches_no_other_token(settings):
    drawn = Drawn(settings | dict(balance_weight=0.1, z_weight=0.1), 3, jnp.float32)
    bad_BT = np.zeros(drawn.ids.shape, bool)
    bad_BT[0, 2] = bad_BT[0, -1] = True  # a token, and padding
    clean = jnp.where(bad_BT[..., None], 0, drawn.x)

    def pull(x):
        y, back = jax.vjp(lambda x: drawn.run(drawn.params, x), x)
        return y[0], *back((drawn.cotangent, jnp.float32(1)))

    spoilt = [np.asarray(a) for a in jax.jit(pull)(jnp.where(bad_BT[..., None], jnp.nan, clean))]
    expected = [np.asarray(a) for a in jax.jit(pull)(clean)]
    real = (drawn.ids != 0) & ~bad_BT
    assert np.isnan(spoilt[0][0, 2]).all()
    np.testing.assert_array_equal(spoilt[0][real], expected[0][real])
    # The other tokens' gradients hold the load-balance loss, in which the bad token is one of many.
    assert np.isfinite(spoilt[1][real]).all()


def test_padding_goes_nowhere_and_counts_in_no_loss():
    drawn = Drawn(PLAIN | dict(balance_weight=0.1, z_weight=0.1), 4, jnp.float32)
    padding = (drawn.ids == 0)[..., None]
    run = jax.jit(drawn.run)
    y, loss = run(drawn.params, drawn.x)
    other, same_loss = run(drawn.params, jnp.where(padding, 100.0, drawn.x))
    assert not np.any(np.asarray(y)[drawn.ids == 0])
    np.testing.assert_array_equal(other, y)
    assert float(loss) == float(same_loss)
    routes = drawn.bind(drawn.params).router(drawn.x, drawn.ids)
    assert int(routes.counts_E.sum()) == 2 * np.count_nonzero(drawn.ids)


@pytest.mark.parametrize("seed", range(3))
def test_it_counts_its_parameters_and_its_flops(seed):
    settings = reference.draw(np.random.default_rng(seed))
    drawn = Drawn(settings, 0, jnp.float32)
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): x
        for path, x in jax.tree_util.tree_leaves_with_path(drawn.params)
    }
    idle = sum(x.size for n, x in flat.items() if n.startswith("experts."))
    idle = idle // settings["experts"] * (settings["experts"] - settings["top_k"])
    total = sum(x.size for x in flat.values())
    assert drawn.config.parameters(WIDTH) == total
    assert drawn.config.active_parameters(WIDTH) == total - idle
    biases = sum(x.size for n, x in flat.items() if n.startswith("router.") and x.ndim == 1)
    used = sum(x.size for n, x in flat.items() if n.startswith("experts.") and n.endswith("_bias"))
    biases += used // settings["experts"] * settings["top_k"]
    assert drawn.config.flops_per_token(WIDTH) == 2 * (total - idle - biases)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(top_k=7), "mlp.top_k is 7, and there are 6 experts"),
        (dict(gated=False, clamp=7.0), "mlp.clamp is of gated experts: set gated=True"),
        (dict(activation="relu", gate_slope=1.7), 'mlp.gate_slope goes with activation "silu"'),
        (dict(shared_gate=True), "mlp.shared_gate is of a shared expert, and there is none"),
        (dict(router=dict(groups=4)), "mlp.router.groups is 4 and does not divide the 6 experts"),
        (dict(router=dict(groups=2, top_groups=3)), "mlp.router.top_groups is 3, and there are 2"),
        (dict(router=dict(groups=6)), 'mlp.router.group_score "top2" adds a group'),
        (
            dict(router=dict(groups=6, group_score="max")),
            "mlp.router.top_groups 1 of 1 experts each have fewer than top_k 2",
        ),
        (dict(router=dict(choice_bias_rate=0.1)), "mlp.router.choice_bias_rate moves a bias that"),
        (
            dict(router=dict(scores="softmax_chosen", choice_bias=True)),
            'mlp.router.scores is "softmax_chosen", whose experts are those of the highest logits',
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError) as caught:
        read_feedforward(PLAIN | changes, "mlp")
    assert str(caught.value).startswith(message)
