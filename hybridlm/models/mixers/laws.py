"""Judges a mixer by the laws of `kernels_pallas.testing`: with its projections, convolutions and caches."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hybridlm.errors import UserError
from hybridlm.models.mixers import LayerSpec, MixerConfig, SequenceContext, read_mixer
from hybridlm.settings.names import nearest
from hybridlm.settings.reader import Invalid
from kernels_pallas import dispatch, segments
from kernels_pallas.testing import LAWS, Subject, normal

LONGEST = 160  # capacity of the caches, in tokens


class Verdict(NamedTuple):
    """Whether a mixer obeys a law on the drawn inputs.

    Attributes:
      law: its name, as in `LAWS`.
      holds: on all draws.
      reason: what differed, and by how much; "" where the law holds.
      seconds: of all draws, compilation included.
    """

    law: str
    holds: bool
    reason: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.law}: " + ("holds" if self.holds else f"BROKEN: {self.reason}")


def judge(
    mixer: MixerConfig | Mapping[str, Any],
    laws: str | Iterable[str] | None = None,
    *,
    width: int = 32,
    draws: int = 1,
    seed: int = 0,
) -> Iterator[Verdict]:
    """Checks laws one after the other, each on inputs, parameters and documents drawn afresh.

    Agreement in bfloat16 and over several devices is not among them: `tests/models/record_laws.py`
    checks these two on the mixers of the library.

    A verdict takes seconds to half a minute on a CPU, most of it compilation: run the process with
    XLA_FLAGS=--xla_backend_optimization_level=0, because each program runs once.

    Args:
      mixer: settings of a registered kind, or a `MixerConfig`.
      laws: names from `kernels_pallas.testing.LAWS`, or one name; None for all.
      width: of the residual stream.
      draws: checks of a law, each with another draw; at least 1.
      seed: of the draws.

    Raises:
      UserError: for an unknown law, for no draw, and for settings that do not fit `width`.
    """
    if draws < 1:
        raise UserError(f"draws is {draws}: a law is checked on at least 1")
    laws = [laws] if isinstance(laws, str) else list(LAWS if laws is None else laws)
    for law in laws:
        if law not in LAWS:
            raise UserError(f"there is no law {law!r}: {nearest(law, LAWS)}")
    config = read_mixer(mixer, "mixer")
    try:
        tested = mixer_subject(config, width)
    except Invalid as error:
        raise UserError(f"mixer.{error.field} {error}") from None

    def verdicts() -> Iterator[Verdict]:
        for law in laws:
            start, reason = time.perf_counter(), ""
            for draw in range(draws):
                try:
                    with jax.enable_x64(True):
                        LAWS[law](tested, np.random.default_rng([seed, draw]))
                except AssertionError as error:
                    reason = str(error) or "an assertion without a message failed"
                    break
            yield Verdict(law, not reason, reason, time.perf_counter() - start)

    return verdicts()


def mixer_subject(config: MixerConfig, width: int = 32, name: str | None = None) -> Subject:
    """A mixer as a subject of the laws, with parameters drawn near their initial values.

    A subject's state is (the mixer's state, segment ids of the last tokens, positions of the next
    ones). Without a state, the outputs are those of the parallel form, `__call__`.

    Args:
      width: of the residual stream.
      name: for error messages; the kind by default.
    """
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
        name=name or config.kind_name,
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
