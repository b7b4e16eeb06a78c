"""Training speed of hybridlm: the trainer's own config, model, optimizer, state and step.

Runs the compiled step that `hybridlm train` runs; the data pipeline's `concat_sequence`
makes the batches, as one document each and as packed documents (the same compiled step for both).
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import measure
import numpy as np

import hybridlm  # noqa: F401 - its version is reported
from hybridlm import config as configs
from hybridlm.data.packing import concat_sequence
from hybridlm.models.dtypes import compute_dtype
from hybridlm.parallel import mesh as meshes
from hybridlm.train import host_memory, setup

MEAN_DOCUMENT = 256  # tokens; a document begins at each with this reciprocal probability


def measured_matmul_flops(size: int = 1024, seconds: float = 0.3) -> float:
    """FLOP/s of the fastest of several square float32 matmuls on the default device."""
    x = jnp.ones((size, size), jnp.float32)
    matmul = jax.jit(lambda a, b: a @ b).lower(x, x).compile()
    matmul(x, x).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        matmul(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def settings(options: argparse.Namespace) -> dict:
    """What a recipe's `get_config` would return."""
    attention = dict(kind="attention", heads=measure.HEADS, head_dim=measure.HEAD_DIM, qk_norm=True)
    rope = dict(theta=measure.ROPE_THETA)
    return dict(
        seed=options.seed,
        model=dict(
            width=measure.WIDTH,
            depth=measure.DEPTH,
            vocab_size=measure.VOCAB,
            pattern="swa full",
            mixers=dict(
                swa=dict(attention, window=measure.WINDOW, rope=rope),
                full=dict(attention, window=None, rope=rope),
            ),
            mlp=dict(kind="swiglu", hidden=measure.MLP),
            norm_eps=measure.NORM_EPS,
            init_std=measure.INIT_STD,
        ),
        data=dict(
            sources=dict(random=dict(kind="text", path="made in memory, never opened")),
            seq_len=measure.TIME,
            batch_size=measure.BATCH,
        ),
        optimizer=dict(
            name="adamw",
            schedule="constant",
            lr=measure.LEARNING_RATE,
            b1=measure.B1,
            b2=measure.B2,
            eps=measure.ADAM_EPS,
            weight_decay=measure.WEIGHT_DECAY,
            clip_norm=measure.CLIP_NORM,
        ),
        train=dict(steps=options.steps + options.warmup),
    )


def run(options: argparse.Namespace) -> dict:
    host_memory.keep_large_buffers()  # where `train` does it: before jax has threads
    config, tokenizer = setup.resolve(configs.read(settings(options)))
    start = time.perf_counter()
    lowered = setup.lower_step(config, tokenizer.token_bytes(), jax.devices())
    train_step = setup.compile_lowered(lowered)
    compile_seconds = time.perf_counter() - start

    def case(layout) -> dict:
        state, batch = lowered.init_state(config.seed), batches(config, lowered.mesh, layout)

        def train(tokens: np.ndarray) -> float:
            nonlocal state
            state, metrics = train_step(state, batch(tokens))
            return float(metrics["loss"])

        return measure.time_steps(train, options)

    return {
        "cases": {
            "one document": case(one_document),
            "packed documents": case(Packed(options.seed)),
        },
        "parameters": lowered.model.count(),
        "matmul_flops": measured_matmul_flops(),
        "compile_seconds": compile_seconds,
        "threads": f"XLA's pool on {measure.cores()} cores",
        "dtype": str(compute_dtype(config.train.dtype)),
        "versions": measure.versions("hybridlm", "jax", "jaxlib", "numpy"),
    }


def batches(config, mesh: jax.sharding.Mesh, layout: Callable) -> Callable[[np.ndarray], dict]:
    """A function of tokens (batch, time + 1) that returns the step's batch in that layout, on the mesh."""
    sharding, schedule = meshes.batch_sharding(mesh), setup.placed_schedule(config, mesh)

    def batch(tokens: np.ndarray) -> dict:
        arrays = {
            name: jax.make_array_from_process_local_data(sharding, array)
            for name, array in layout(tokens).items()
        }
        return {**arrays, "schedule": schedule}

    return batch


def one_document(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """A training batch (1, batch, time) of sequences that are one document each."""
    begins = np.zeros(tokens.shape, bool)
    begins[:, 0] = True
    return _batch(tokens, begins)


class Packed:
    """The same sequences with document boundaries drawn at random, other ones for each batch."""

    def __init__(self, seed: int):
        self._generator = np.random.default_rng([seed, 1])

    def __call__(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        return _batch(tokens, self._generator.random(tokens.shape) < 1 / MEAN_DOCUMENT)


def _batch(tokens: np.ndarray, begins: np.ndarray) -> dict[str, np.ndarray]:
    rows = [concat_sequence(row, where, measure.TIME) for row, where in zip(tokens, begins)]
    return {n: np.stack([getattr(row, n) for row in rows])[None] for n in rows[0]._fields}


if __name__ == "__main__":
    measure.main(__doc__, {"trainer": run})
