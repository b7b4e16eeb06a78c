"""Training speed of jax-linear-attention: its model, loss, optimizer and train step, on a CPU.

The model is its `ModelConfig` with `local_attention` and `attention` layers in turn, as in its
Gemma 3 and gpt-oss presets. On a CPU its attention has one implementation ("xla", dense scores
under a mask, for windowed layers too). Variants are what is left to choose: layers scanned or
unrolled, its memory-lean backward, rematerialisation.
"""

import argparse
import functools
import time

import equinox as eqx
import jax
import measure
import numpy as np
from jla.models import build_model
from jla.models.config import AttentionConfig, ModelConfig
from jla.training.optimizers import create_optimizer
from jla.training.step import LossConfig, build_train_step, lm_loss


def model_config(**choices: object) -> ModelConfig:
    def attention(window: int | None) -> AttentionConfig:
        return AttentionConfig(
            num_heads=measure.HEADS,
            num_kv_heads=measure.HEADS,
            head_dim=measure.HEAD_DIM,
            rope_theta=measure.ROPE_THETA,
            qk_norm=True,
            sliding_window=window,
        )

    return ModelConfig(
        vocab_size=measure.VOCAB,
        d_model=measure.WIDTH,
        n_layers=measure.DEPTH,
        d_ff=measure.MLP,
        local_attention=attention(measure.WINDOW),
        attention=attention(None),
        layer_types=("local_attention", "attention") * (measure.DEPTH // 2),
        norm_eps=measure.NORM_EPS,
        initializer_range=measure.INIT_STD,
        tie_embeddings=True,
        param_dtype="float32",
        compute_dtype="float32",
        **choices,
    )


def run(options: argparse.Namespace, **choices: object) -> dict:
    matmul = matmul_flops()
    build = functools.partial(build_model, model_config(**choices))
    model_key, key = jax.random.split(jax.random.key(options.seed))
    abstract = eqx.filter_eval_shape(build, key=model_key)
    arrays = jax.jit(lambda key: eqx.filter(build(key=key), eqx.is_array))(model_key)
    model = eqx.combine(arrays, eqx.filter(abstract, is_shape, inverse=True))
    optimizer = create_optimizer(
        lr=measure.LEARNING_RATE,
        weight_decay=measure.WEIGHT_DECAY,
        betas=(measure.B1, measure.B2),
        eps=measure.ADAM_EPS,
        max_grad_norm=measure.CLIP_NORM,
    )
    params = eqx.filter(model, eqx.is_inexact_array)
    parameters = sum(x.size for x in jax.tree.leaves(params))
    opt_state = jax.jit(optimizer.init)(params)
    step = build_train_step(optimizer, lm_loss(LossConfig(compute_dtype="float32")))

    def batch(tokens: np.ndarray) -> dict[str, jax.Array]:
        parts = {"input_ids": tokens[None, :, :-1], "labels": tokens[None, :, 1:]}
        return jax.tree.map(jax.numpy.asarray, parts)

    start = time.perf_counter()
    example = batch(next(measure.streams(options.seed)))
    step.use_compiled(step.lower(model, opt_state, example, key).compile())
    compile_seconds = time.perf_counter() - start
    del params, arrays

    def train(tokens: np.ndarray) -> float:
        nonlocal model, opt_state, key
        model, opt_state, metrics, key = step(model, opt_state, batch(tokens), key)
        return float(metrics["loss"])

    return {
        "cases": {"one document": measure.time_steps(train, options)},
        "parameters": parameters,
        "matmul_flops": matmul,
        "compile_seconds": compile_seconds,
        "threads": f"XLA's pool on {measure.cores()} cores",
        "dtype": "float32",
        "versions": {
            "jax-linear-attention": _distribution_version("jax-linear-attention"),
            **measure.versions("jax", "jaxlib", "numpy"),
        },
    }


def is_shape(leaf: object) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def matmul_flops(size: int = 1024) -> float:
    x = jax.numpy.ones((size, size), jax.numpy.float32)
    multiply = jax.jit(lambda a, b: a @ b).lower(x, x).compile()
    return measure.matmul_flops(lambda: multiply(x, x).block_until_ready(), size)


def _distribution_version(name: str) -> str:
    from importlib import metadata

    return metadata.version(name)


VARIANTS = {
    "scanned layers": dict(remat="none", scan_layers=True),
    "scanned layers, lean backward": dict(remat="none", scan_layers=True, lean_vjp=True),
    "scanned layers, full remat": dict(remat="full", scan_layers=True),
    "unrolled layers": dict(remat="none", scan_layers=False),
    "unrolled layers, lean backward": dict(remat="none", scan_layers=False, lean_vjp=True),
}

if __name__ == "__main__":
    measure.main(
        __doc__, {name: functools.partial(run, **choices) for name, choices in VARIANTS.items()}
    )
