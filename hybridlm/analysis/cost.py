"""The cost of a run of a config; uses no device."""

import dataclasses
from typing import Any

from hybridlm.models.params import Model
from hybridlm.train.memory import MemoryEstimate, estimate_memory
from hybridlm.train.optimizer import optimizer_of
from hybridlm.train.settings import Config
from hybridlm.train.setup import costs, resolve


def cost(config: Config) -> dict[str, Any]:
    """Parameters, steps, tokens, training FLOPs and estimated bytes of memory."""
    config, _ = resolve(config)
    model = Model.of(config.model)
    tokens = config.tokens_per_step * config.train.steps
    return {
        "parameters": model.count(),
        "parameters_without_embedding": model.count(embeddings=False),
        "steps": config.train.steps,
        "tokens": tokens,
        "flops": costs(config, model)[0] * tokens,
        "memory_bytes": memory(config, model).total,
    }


def memory(config: Config, model: Model) -> MemoryEstimate:
    """Estimated memory of training `model`, in bytes by purpose."""
    trainable, optimizer = optimizer_of(config.optimizer, model)
    needed = estimate_memory(
        model,
        optimizer,
        config.tokens_per_step // config.train.accumulate,
        config.train.remat,
        2 if config.train.dtype == "bfloat16" else 4,
        trainable,
        config.train.ema_decay is not None,
    )
    if config.teacher is None:
        return needed
    size = 2 if config.teacher.dtype == "bfloat16" else 4
    needed = dataclasses.replace(needed, teacher=size * Model.of(config.teacher.model).count())
    if config.teacher.objective == "kl":
        return needed
    # Blockwise distillation holds the activations of one layer.
    return dataclasses.replace(needed, activations=needed.activations // config.model.depth)
