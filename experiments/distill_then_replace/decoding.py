"""Decoding speed and the memory of states, before and after layers are replaced.

One token at a time, batch 1, float32. A cache with room for N tokens is read as a whole at every token, so
the time is that of a document of N tokens. All models have their layers stacked as the hybrid's.
"""

import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.distill_then_replace.usage import measured, processor_seconds
from hybridlm.distill.layers import stacked_like
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model
from hybridlm.runs import open_model
from hybridlm.runs.json_files import write_json
from hybridlm.runs.opened import OpenedModel

DONE = "decode.json"
CONTEXTS = (4096, 16_384)
TOKENS, ROUNDS = 8, 5  # tokens of a call; calls of each model, in turn


def run(
    models: dict[str, pathlib.Path],
    hybrid: str,
    workdir: pathlib.Path,
    contexts: Sequence[int] = CONTEXTS,
) -> None:
    """Measures the models, in turn, at each context.

    Args:
      models: by name. hybrid: the name of the one whose stacking all have.
    """
    if (workdir / DONE).exists():
        return
    with measured(workdir, "decode"):
        opened = {name: open_model(path) for name, path in models.items()}
        layout = opened[hybrid].config.layout
        runs = {name: _Decoding(model, layout) for name, model in opened.items()}
        rows = []
        for context in contexts:
            states = {name: one.state(context) for name, one in runs.items()}
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
            for number in range(1 + ROUNDS):  # the first compiles
                for name, one in runs.items():
                    wall, processor = time.perf_counter(), processor_seconds()
                    states[name] = jax.block_until_ready(one.tokens(states[name], context))
                    if number:
                        took = time.perf_counter() - wall, processor_seconds() - processor
                        times[name].append(took)
            for name in runs:
                walls, processors = zip(*times[name])
                config = opened[name].config
                computed = sum(
                    m.state_bytes(config.width, context) for _, m in config.layer_mixers()
                )
                rows.append(
                    {
                        "model": name,
                        "context": context,
                        "wall_seconds_per_token": [w / TOKENS for w in walls],
                        "processor_seconds_per_token": statistics.median(processors) / TOKENS,
                        "state_bytes_float32": sum(x.nbytes for x in jax.tree.leaves(states[name])),
                        "state_bytes_bfloat16_computed": computed,
                    }
                )
                print(name, context, rows[-1], flush=True)
        write_json(workdir / DONE, rows)


class _Decoding:
    """One model, decoding greedily."""

    def __init__(self, opened: OpenedModel, layout: Any):
        self._model = model = Model.of(stacked_like(opened.config, layout))
        self._params = jax.tree.map(
            jnp.asarray, model.from_names(opened.model.by_name(opened.params))
        )

        def run(params: Any, state: Any, position: jax.Array) -> Any:
            module = model.bind(params)

            def one(carry: Any, _: None) -> Any:
                token_11, position, state = carry
                context = SequenceContext(jnp.ones((1, 1), jnp.int32), position[None, None])
                logits, state = module.extend(token_11, context, state)
                return (jnp.argmax(logits, -1).astype(jnp.int32), position + 1, state), None

            start = jnp.ones((1, 1), jnp.int32), position, state
            return jax.lax.scan(one, start, length=TOKENS)[0][2]

        self._run = jax.jit(run, donate_argnums=1)

    def state(self, context: int) -> Any:
        return jax.jit(lambda: self._model.bind(self._params).init_decode(1, context))()

    def tokens(self, state: Any, context: int) -> Any:
        """The state after some more tokens, near the end of the context."""
        return self._run(self._params, state, jnp.int32(context - TOKENS * (ROUNDS + 2)))
