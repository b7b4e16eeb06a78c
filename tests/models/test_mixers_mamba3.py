"""Mamba-3 against a literal transcription of its paper, and what it contains: Mamba-2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from jax.interpreters import partial_eval

from hybridlm.models.mixers import LayerSpec, read_mixer, trapezoid
from kernels_pallas import dispatch, segments
from kernels_pallas.gated_linear import gated_linear
from kernels_pallas.testing import assert_close, draw_segment_ids, normal

WIDTH, TIME, EPS = 32, 23, 1e-6


def transcription(p, config, x_BTD, ids_BT):
    """The mixer of arXiv 2603.15569 token by token, from its equations alone, in complex numbers.

    h_t = exp(dt A + i theta) h_{t-1} + (1 - l) dt exp(dt A + i theta) B_{t-1} x_{t-1} + l dt B_t x_t and
    y_t = Re(conj(C_t) . h_t) + D x_t, with R inputs and outputs; rows that do not rotate have theta = 0.
    """
    heads, size, rank = p["skip"].shape[0], config.head_dim, config.rank
    batch, time, _ = x_BTD.shape
    rows, pairs = config.state_dim, config.angles
    starts_BT = segments.document_starts(ids_BT)

    def linear(name):
        return x_BTD @ p[name]["kernel"]

    def by_head(name):
        return linear(name).reshape(batch, time, heads, 1, size)

    def normed(name):
        v = linear(name).reshape(batch, time, rank, config.groups, rows)
        v = v / jnp.sqrt(jnp.mean(v**2, axis=-1, keepdims=True) + EPS) * p[f"{name}_norm"]["scale"]
        v = jnp.moveaxis(v, 2, 3)  # (B, T, groups, R, N)
        return jnp.stack(
            [v[:, :, h // (heads // config.groups)] + p[f"{name}_bias"][h] for h in range(heads)], 2
        )

    def as_complex(v):
        """Row f and row F + f are real and imaginary part of one number; the others are real."""
        return jnp.concatenate(
            [v[..., :pairs] + 1j * v[..., pairs : 2 * pairs], v[..., 2 * pairs :] + 0j], axis=-1
        )

    factors = p.get("ranks") or dict(x=1.0, z=1.0, y=1.0)
    x, z = by_head("value") * factors["x"], by_head("gate") * factors["z"]  # (B, T, H, R, P)
    b, c = as_complex(normed("key")), as_complex(normed("query"))
    dt = jax.nn.softplus(linear("dt") + p["dt_bias"])
    a = -jnp.maximum(jax.nn.softplus(linear("decay")), config.decay_floor)
    weight = jax.nn.sigmoid(linear("weight"))
    theta = jnp.pi * jnp.tanh(linear("angle"))[:, :, None] * dt[..., None]  # (B, T, H, F)
    theta = jnp.pad(theta, ((0, 0), (0, 0), (0, 0), (0, rows - 2 * pairs)))
    decay = jnp.exp((dt * a)[..., None] + 1j * theta)[..., None]  # (B, T, H, N', 1)

    def step(carry, token):
        h, before = carry
        decay, b, c, x, dt, weight, start = token
        start, weight, dt = start[:, None, None, None], weight[..., None, None], dt[..., None, None]
        write = jnp.einsum("bhrn,bhrp->bhnp", b, x + 0j)
        h, before = jnp.where(start, 0, h), jnp.where(start, 0, before)
        h = decay * h + (1 - weight) * dt * decay * before + weight * dt * write
        y = jnp.einsum("bhrn,bhnp->bhrp", jnp.conj(c), h).real
        return (h, write), y

    zero = jnp.zeros((batch, heads, rows - pairs, size), complex)
    tokens = [jnp.moveaxis(v, 1, 0) for v in (decay, b, c, x, dt, weight, starts_BT)]
    y = jnp.moveaxis(jax.lax.scan(step, (zero, zero), tokens)[1], 0, 1)
    y = y + p["skip"][:, None, None] * x
    if config.norm:
        y = y / jnp.sqrt(jnp.mean(y**2, axis=-1, keepdims=True) + EPS) * p["norm"]["norm"]["scale"]
    y = jnp.sum(y * jax.nn.silu(z) * factors["y"], axis=3)
    return y.reshape(batch, time, -1) @ p["out"]["kernel"]


def drawn(name, rng):
    """(config, the module's graph, random parameters) of a mixer of `small.MIXERS`."""
    config = read_mixer(small.MIXERS[name], name)
    spec = LayerSpec(WIDTH, EPS, 1.0)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: config.build(spec, rngs=nnx.Rngs(0))))

    def draw(p):
        scale = WIDTH**-0.5 if p.ndim == 2 else 0.3
        return jnp.asarray((p.ndim != 2) + scale * rng.standard_normal(p.shape))

    return config, graphdef, jax.tree.map(draw, state)


def check_the_paper(name):
    """Outputs, and gradients of every parameter and of the input, with documents and padding."""
    rng = np.random.default_rng(0)
    config, graphdef, state = drawn(name, rng)
    x_BTD, cotangent_BTD = (normal(rng, (2, TIME, WIDTH), jnp.float64) for _ in range(2))
    ids_BT = draw_segment_ids(rng, 2, TIME)
    is_real_BT1 = (ids_BT != 0)[..., None]

    def ours(params, x_BTD):
        return nnx.merge(graphdef, params)(x_BTD, small.context(ids_BT))

    def papers(params, x_BTD):
        with jax.numpy_rank_promotion("allow"):
            return transcription(nnx.to_pure_dict(params), config, x_BTD, ids_BT)

    def results(form):
        def masked(params, x_BTD):
            return jnp.where(is_real_BT1, form(params, x_BTD), 0)

        y_BTD, vjp = jax.vjp(masked, state, x_BTD)
        return y_BTD, vjp(cotangent_BTD)

    got, want = (jax.jit(results, static_argnums=0)(form) for form in (ours, papers))
    assert_close(f"{name}: the mixer = its paper", got, want, 1e-9)


@pytest.mark.parametrize("name", ["ssm3_mimo", pytest.param("ssm3", marks=pytest.mark.slow)])
def test_the_mixer_is_the_paper(x64, name):
    check_the_paper(name)


def check_two_calls(name):
    """Outputs of two calls, the second with the state of the first, are those of one call."""
    rng = np.random.default_rng(4)
    _, graphdef, state = drawn(name, rng)
    x_BTD = normal(rng, (2, TIME, WIDTH), jnp.float64)
    ids_BT = np.asarray(draw_segment_ids(rng, 2, TIME)).copy()
    cut = TIME // 2
    ids_BT[:, cut - 2 : cut + 2] = 1  # a document across the cut

    @jax.jit
    def outputs(params, x_BTD):
        mixer, carried, parts = nnx.merge(graphdef, params), None, []
        for part in (slice(0, cut), slice(cut, TIME)):
            y_BTD, carried = mixer.extend(x_BTD[:, part], small.context(ids_BT[:, part]), carried)
            parts.append(y_BTD)
        return mixer(x_BTD, small.context(ids_BT)), jnp.concatenate(parts, axis=1)

    whole, pieces = (jnp.where((ids_BT != 0)[..., None], y, 0) for y in outputs(state, x_BTD))
    assert_close(f"{name}: two calls = one", pieces, whole, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssm3", "ssm3_mimo"])
def test_two_calls_are_one(x64, name):
    check_two_calls(name)


def last_token_dropped(own, last, ids_BT, original=trapezoid._token_before):
    return original(own, jax.tree.map(jnp.zeros_like, last), ids_BT)


def token_before_of_any_document(own, last, ids_BT, original=trapezoid._token_before):
    ones_BT = jnp.ones_like(ids_BT)
    return original(own._replace(segment_ids_B=ones_BT), last, ones_BT)


def state_leaves_in_the_first_frame(x, angle, original=trapezoid._rotated):
    """Only the state has four axes."""
    return x if x.ndim == 4 else original(x, angle)


def decay_at_every_input(q, k, v, log_decay_BSH, original=trapezoid.ops.gated_linear, **options):
    """Each of a token's three steps decays, not the first alone."""
    return original(q, k, v, jnp.repeat(log_decay_BSH[:, ::3], 3, axis=1), **options)


def weights_swapped(inputs, *arguments, original=trapezoid.trapezoid):
    """The part of a token that is written with it is written with the next one."""
    return original(inputs._replace(weight_BTH=1 - inputs.weight_BTH), *arguments)


#: Where, what, by what, and the check that must fail.
FAULTS = {
    "inputs above the output's number missed": (
        trapezoid,
        "_missed",
        lambda q, before, u: jnp.zeros_like(u),
        check_the_paper,
    ),
    "decay at every input": (
        trapezoid.ops,
        "gated_linear",
        decay_at_every_input,
        check_the_paper,
    ),
    "token before of another document": (
        trapezoid,
        "_token_before",
        token_before_of_any_document,
        check_the_paper,
    ),
    "weights swapped": (trapezoid, "trapezoid", weights_swapped, check_the_paper),
    "an angle turns its own token alone": (
        trapezoid._sums,
        "bwd",
        lambda ids_BT, dsums_BTD: (dsums_BTD, None),
        check_the_paper,
    ),
    "last token of the state dropped": (
        trapezoid,
        "_token_before",
        last_token_dropped,
        check_two_calls,
    ),
    "state leaves in the first token's frame": (
        trapezoid,
        "_rotated",
        state_leaves_in_the_first_frame,
        check_two_calls,
    ),
}


@pytest.mark.parametrize(
    "fault",
    [
        name if n == 0 else pytest.param(name, marks=pytest.mark.slow)
        for n, name in enumerate(FAULTS)
    ],
)
def test_planted_faults_are_caught(x64, monkeypatch, fault):
    where, name, replacement, check = FAULTS[fault]
    monkeypatch.setattr(where, name, replacement)
    jax.clear_caches()
    with pytest.raises(AssertionError, match="off by"):
        check("ssm3_mimo")
    jax.clear_caches()


def inputs(rng, heads=2, rank=1, size=6, pairs=2):
    def positive(*shape):
        return jnp.asarray(rng.exponential(size=(2, TIME, heads, *shape)))

    return trapezoid.Inputs(
        normal(rng, (2, TIME, heads, rank, size), jnp.float64),
        normal(rng, (2, TIME, heads, rank, size), jnp.float64),
        normal(rng, (2, TIME, heads, rank, 5), jnp.float64),
        -positive(),
        positive(),
        jnp.asarray(rng.random((2, TIME, heads))),
        positive(pairs),
    )


@pytest.mark.slow
def test_with_weight_1_and_no_angles_it_is_mamba2(x64):
    rng = np.random.default_rng(1)
    x, ids_BT = inputs(rng), draw_segment_ids(rng, 2, TIME)
    plain = x._replace(
        weight_BTH=jnp.ones_like(x.weight_BTH), angle_BTHF=jnp.zeros_like(x.angle_BTHF)
    )
    y_BTHRP, state = jax.jit(trapezoid.trapezoid)(plain, ids_BT, None)
    q, k, v = (x[:, :, :, 0] for x in plain[:3])
    want = gated_linear(
        q, k, plain.step_BTH[..., None] * v, plain.log_decay_BTH, segment_ids=ids_BT
    )
    real = (np.asarray(ids_BT) != 0)[..., None, None]
    assert_close("Mamba-2", np.where(real, y_BTHRP[:, :, :, 0], 0), np.where(real, want, 0), 1e-10)


def test_a_state_without_rotating_pairs_is_one_whose_angles_are_zero(x64):
    """State of 3 rows at the default fraction: one call, and two with a state."""
    rng = np.random.default_rng(3)
    real = read_mixer(dict(kind="mamba3", head_dim=16, state_dim=3), "real")
    turning = read_mixer(
        dict(kind="mamba3", head_dim=16, state_dim=3, rope_fraction=1.0), "turning"
    )
    assert (real.angles, turning.angles) == (0, 1)
    mixers = [c.build(LayerSpec(WIDTH, EPS, 1.0), rngs=nnx.Rngs(0)) for c in (real, turning)]
    values = nnx.to_pure_dict(nnx.state(mixers[0]))
    values["angle"] = {"kernel": jnp.zeros((WIDTH, 1))}
    nnx.update(mixers[1], values)
    x_BTD = normal(rng, (2, TIME, WIDTH), jnp.float64)
    ids_BT = np.asarray(draw_segment_ids(rng, 2, TIME))

    def in_one_call(mixer, x_BTD):
        return mixer(x_BTD, small.context(ids_BT))

    def in_two_calls(mixer, x_BTD):
        state, parts = mixer.init_state(2, TIME, jnp.float64), []
        for part in (slice(0, TIME - 1), slice(TIME - 1, TIME)):
            y_BTD, state = mixer.extend(x_BTD[:, part], small.context(ids_BT[:, part]), state)
            parts.append(y_BTD)
        return jnp.concatenate(parts, axis=1)

    def real_tokens(y_BTD):
        return jnp.where((ids_BT != 0)[..., None], y_BTD, 0)

    want = real_tokens(nnx.jit(in_one_call)(mixers[1], x_BTD))
    for form in (in_one_call, in_two_calls):
        assert_close(form.__name__, real_tokens(nnx.jit(form)(mixers[0], x_BTD)), want, 1e-10)


def test_sums_of_angles_keep_the_digits_of_neighbours():
    """4,000 angles of up to half a turn: of a float32 sum, differences would be off by 5e-4."""
    rng = np.random.default_rng(2)
    angle = (np.pi * (1 - rng.random((1, 4000, 1, 3)))).astype(np.float32)
    got = jax.jit(trapezoid._sums_of_angles)(jnp.asarray(angle), jnp.ones((1, 4000), jnp.int32))
    wrong = np.diff(np.asarray(got, np.float64), axis=1) - angle[:, 1:]
    assert np.max(np.abs(np.sin(wrong))) < 2e-6 and np.min(np.cos(wrong)) > 0


def test_an_angle_turns_all_later_tokens_of_its_document_and_no_others(x64):
    """The gradient of the sums, whose values are taken modulo a turn over the whole row."""
    rng = np.random.default_rng()
    ids_BT = draw_segment_ids(rng, 2, 1100)  # longer than a block of the recurrence's chunked form
    number_BT = np.asarray(segments.document_number(ids_BT))
    angle_BTHF, d_BTHF = (normal(rng, (2, 1100, 2, 3), jnp.float64) for _ in range(2))

    @jax.jit
    def gradient(angle_BTHF, d_BTHF):
        return jax.vjp(lambda x: trapezoid._sums_of_angles(x, ids_BT), angle_BTHF)[1](d_BTHF)

    (got,) = gradient(angle_BTHF, d_BTHF)
    later_BTS = np.tril(np.ones((1100, 1100), bool)).T
    later_BTS = later_BTS & (number_BT[:, :, None] == number_BT[:, None])
    later_BTS = later_BTS & (np.asarray(ids_BT) != 0)[:, :, None]
    assert_close("later", got, np.einsum("bts,bshf->bthf", later_BTS, d_BTHF), 1e-12)


def test_the_gradient_of_the_sums_runs_one_kernel():
    """Of a program for a TPU, without what nothing reads."""
    ids_BT, angle = jnp.ones((1, 64), jnp.int32), jnp.zeros((1, 64, 2, 64))

    def gradient(angle, d):
        return jax.vjp(lambda x: trapezoid._sums_of_angles(x, ids_BT), angle)[1](d)

    with dispatch.kernels_for("tpu"):
        traced = jax.make_jaxpr(gradient)(angle, angle).jaxpr
    needed, _ = partial_eval.dce_jaxpr(traced, [True], instantiate=True)
    assert str(needed).count("pallas_call[") == 1


@pytest.mark.parametrize("name", ["ssm3", "ssm3_mimo"])
def test_flops_are_those_of_the_products(name):
    """2 for each entry of a matrix, of the products of R inputs and outputs with the state, of those of
    the own token's pairs and of the pairs that the token before has not written yet, of factors."""
    config = read_mixer(small.MIXERS[name], "m")
    mixer = config.build(LayerSpec(32, EPS, 1.0), rngs=nnx.Rngs(0))
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(mixer)))
    kernels = sum(x.size for path, x in leaves if path[-1].key == "kernel")
    rank, rows, columns = config.rank, config.state_dim, config.head_dim
    pairs = rank * rank + rank * (rank - 1) // 2
    a_head = 2 * rank * rows * columns + pairs * (rows + columns) + rank * columns
    if rank > 1:
        a_head += 3 * rank * columns
    assert config.flops_per_token(32, 99) == 2 * (kernels + config.head_count(32) * a_head)


def test_parameters_start_as_published():
    config = read_mixer(dict(kind="mamba3", rank=4), "m")
    mixer = config.build(LayerSpec(64, EPS, 1.0), rngs=nnx.Rngs(0))
    for bias in (mixer.key_bias, mixer.query_bias):
        assert bias.shape == (2, 4, 128) and np.all(bias[...] == 1)
    assert np.all(mixer.ranks.x[...] == 1 / 4) and np.all(mixer.ranks.y[...] == 1 / 4)
    assert np.all(mixer.ranks.z[...] == 1) and np.all(mixer.skip[...] == 1)
    dt = np.asarray(jax.nn.softplus(mixer.dt_bias[...]))
    assert np.all((dt > 0.99e-3) & (dt < 0.101))
    assert config.angles == 32
