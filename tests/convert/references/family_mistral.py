"""Mistral, Ministral and Ministral 3."""

from cases import Draw, case, rope, sizes, types, window
from transformers import (
    Ministral3Config,
    Ministral3ForCausalLM,
    MinistralConfig,
    MinistralForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)


@case("mistral", MistralForCausalLM)
def mistral(draw: Draw) -> MistralConfig:
    local = window(draw) if draw.random() < 0.7 else None
    return MistralConfig(**sizes(draw), rope_parameters=rope(draw), sliding_window=local)


@case("ministral", MinistralForCausalLM)
def ministral(draw: Draw) -> MinistralConfig:
    found = sizes(draw)
    return MinistralConfig(
        **found,
        rope_parameters=rope(draw),
        sliding_window=window(draw),
        layer_types=types(draw, found["num_hidden_layers"]),
    )


@case("ministral3", Ministral3ForCausalLM)
def ministral3(draw: Draw) -> Ministral3Config:
    scaled = rope(draw, scaled=("yarn", "yarn", "linear"))
    scaled.setdefault("original_max_position_embeddings", draw.choice((7, 16)))
    scaled["llama_4_scaling_beta"] = draw.choice((0.1, 0.3, 1.0))
    if scaled["rope_type"] == "yarn" and draw.random() < 0.7:
        scaled |= dict(mscale=draw.choice((0.7, 1.0)), mscale_all_dim=1.0)
    local = window(draw) if draw.random() < 0.3 else None
    return Ministral3Config(**sizes(draw), rope_parameters=scaled, sliding_window=local)
