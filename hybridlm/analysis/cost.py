"""The cost of a run of a config; uses no device."""

from typing import Any

from hybridlm.models.accounting import train_flops_per_token
from hybridlm.models.params import Model
from hybridlm.train.memory import MemoryEstimate, estimate_memory
from hybridlm.train.optimizer import optimizer_of
from hybridlm.train.settings import Config
from hybridlm.train.setup import resolve


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
        "flops": train_flops_per_token(model, config.data.seq_len) * tokens,
        "memory_bytes": memory(config, model).total,
    }


def memory(config: Config, model: Model) -> MemoryEstimate:
    """Estimated memory of training `model`, in bytes by purpose."""
    trainable, optimizer = optimizer_of(config.optimizer, model)
    return estimate_memory(
        model,
        optimizer,
        config.tokens_per_step // config.train.accumulate,
        config.train.remat,
        2 if config.train.dtype == "bfloat16" else 4,
        trainable,
        config.train.ema_decay is not None,
    )
