"""`hybridlm train --dry_run`: the resolved config and what the run would cost, on no device."""

import json
from typing import Any

from hybridlm.models.accounting import layer_table, train_flops_per_token
from hybridlm.models.params import Model
from hybridlm.settings.plain import to_dict
from hybridlm.train.memory import MemoryEstimate, estimate_memory
from hybridlm.train.optimizer import make_optimizer
from hybridlm.train.settings import Config
from hybridlm.train.setup import resolve


def describe(config: Config) -> str:
    """Text for a terminal: the config as JSON, then parameters, FLOPs, tokens and memory."""
    config, _ = resolve(config)
    model = Model.of(config.model)
    seq_len = config.data.seq_len
    flops = train_flops_per_token(model, seq_len)
    tokens = config.tokens_per_step * config.train.steps
    memory = _memory(config, model)
    lines = [json.dumps(to_dict(config), indent=2), "", "layer  mixer", ""]
    rows = layer_table(model, seq_len)
    for i, row in zip(["", *range(len(rows) - 2), ""], rows):  # as the report and probes number
        lines.append(
            f"{i:>5}  {row.name:<12} {row.mechanism:<32} {row.parameters:>14,} parameters"
            f" {row.flops_per_token / 1e6:>10,.3f} MFLOP/token"
        )
    lines += [
        "",
        f"parameters          {model.count():,} ({model.count(embeddings=False):,} without embedding)",
        f"FLOPs per token     {flops:,.0f} (forward and backward, at {seq_len} tokens)",
        f"training tokens     {tokens:,} in {config.train.steps:,} steps of"
        f" {config.tokens_per_step:,}",
        f"training FLOPs      {flops * tokens:.4g}",
        f"memory, estimated   {_size(memory.total)}: parameters {_size(memory.parameters)},"
        f" gradients {_size(memory.gradients)}, optimizer {_size(memory.optimizer)},"
        f" activations {_size(memory.activations)}",
    ]
    return "\n".join(lines)


def cost(config: Config) -> dict[str, Any]:
    """The same in figures: parameters, tokens, steps, FLOPs of training, estimated bytes."""
    config, _ = resolve(config)
    model = Model.of(config.model)
    tokens = config.tokens_per_step * config.train.steps
    return {
        "parameters": model.count(),
        "parameters_without_embedding": model.count(embeddings=False),
        "steps": config.train.steps,
        "tokens": tokens,
        "flops": train_flops_per_token(model, config.data.seq_len) * tokens,
        "memory_bytes": _memory(config, model).total,
    }


def _memory(config: Config, model: Model) -> MemoryEstimate:
    return estimate_memory(
        model,
        make_optimizer(config.optimizer, model.decay, model.muon),
        config.tokens_per_step // config.train.accumulate,
        config.train.remat,
        2 if config.train.dtype == "bfloat16" else 4,
    )


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
