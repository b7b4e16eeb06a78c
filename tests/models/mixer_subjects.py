"""Wraps mixers as subjects of the laws in `kernels_pallas.testing`."""

import jax
import jax.numpy as jnp
import numpy as np
import small
from flax import nnx

from hybridlm.models.mixers import LayerSpec, SequenceContext, read_mixer
from kernels_pallas import dispatch, segments
from kernels_pallas.testing import Subject, normal

LONGEST = 160  # capacity of the caches, in tokens


def mixer_subject(name: str, width: int = 32) -> Subject:
    """The mixer `name` of `small.MIXERS`, with parameters drawn near their initial values.

    A subject's state is (the mixer's state, segment ids of the last tokens, positions of the next
    ones). Without a state, the outputs are those of the parallel form, `__call__`.
    """
    config = read_mixer(small.MIXERS[name], name)
    config.check_width(width)

    def build(seed):
        return config.build(LayerSpec(width, 1e-6, 1.0), rngs=nnx.Rngs(seed))

    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: build(0)))

    def params(rng, dtype):
        seed = int(rng.integers(2**31))
        drawn = nnx.to_pure_dict(nnx.state(build(seed)))
        return jax.tree.map(
            lambda p: jnp.asarray(p + 0.1 * rng.standard_normal(p.shape), dtype), drawn
        )

    def bind(params):
        state = jax.tree.map(lambda x: x, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)

    def run(module, x_BTD, ids_BT, state):
        dtype = x_BTD.dtype
        parallel = state is None
        if parallel:
            zero_B = jnp.zeros(x_BTD.shape[0], jnp.int32)
            state = module.init_state(x_BTD.shape[0], LONGEST, dtype), zero_B, zero_B
        mixer_state, last_B, position_B = state
        positions_BT = _positions(ids_BT, last_B, position_B)
        context = SequenceContext(ids_BT, positions_BT)
        y_BTD, mixer_state = module.extend(x_BTD, context, mixer_state)
        if parallel:
            y_BTD = module(x_BTD, context)
        y_BTD = jnp.where((ids_BT == 0)[..., None], 0, y_BTD)
        return y_BTD, (mixer_state, ids_BT[:, -1], positions_BT[:, -1] + 1)

    def apply(inputs, params, segment_ids, state, impl):
        x_BTD = inputs["x"]
        ids_BT = segments.or_one_document(segment_ids, *x_BTD.shape[:2])
        with dispatch.auto_means(impl):
            y_BTD, state = run(bind(params), x_BTD, ids_BT, state)
        return dict(y=y_BTD), state

    def state(rng, batch, dtype):
        x_BTD = normal(rng, (batch, 7, width), dtype)
        ids_BT = jnp.ones((batch, 7), jnp.int32)
        return jax.jit(lambda p, x: run(bind(p), x, ids_BT, None)[1])(params(rng, dtype), x_BTD)

    return Subject(
        name=name,
        apply=apply,
        inputs=lambda rng, batch, time, dtype: dict(x=normal(rng, (batch, time, width), dtype)),
        params=params,
        state=state,
        op=False,
        extremes={
            "large": lambda inputs: dict(x=inputs["x"] * 100),
            "zero": lambda inputs: dict(x=inputs["x"] * 0),
        },
    )


def _positions(ids_BT, last_B, position_B):
    """The index of each token in its document; continued documents start at `position_B`."""
    index_1T = jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None]
    starts_BT = segments.document_starts(ids_BT, last_B)
    begin_BT = jax.lax.cummax(jnp.where(starts_BT, index_1T, -1), axis=1)
    return jnp.where(begin_BT >= 0, index_1T - begin_BT, index_1T + position_B[:, None])


def seeded(name: str, seed: int) -> tuple[Subject, np.random.Generator]:
    """The subject and a generator for one law."""
    return mixer_subject(name), np.random.default_rng(seed)
