"""Granite 4 hybrid, with experts and dense."""

from cases import Draw, case, rope, sizes
from family_bamba import mamba2_sizes
from family_mamba2 import time_limits
from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM


def config(draw: Draw, **options) -> GraniteMoeHybridConfig:
    while True:  # grouped products of torch want rows of 16 bytes
        found = sizes(draw, layers=(2, 4), head_dim=False)
        if found["hidden_size"] % 4 == 0:
            break
    depth = found["num_hidden_layers"]
    types = ["full_attention", *draw.choices(("linear_attention", "full_attention"), k=depth - 1)]
    draw.shuffle(types)
    return GraniteMoeHybridConfig(
        **found | options,
        **mamba2_sizes(draw, found["hidden_size"]),
        layer_types=types,
        shared_intermediate_size=draw.randint(12, 24),
        position_embedding_type=draw.choice(("rope", "nope", None)),
        rope_parameters=rope(draw),
        hidden_act=draw.choice(("silu", "silu", "swish")),
        attention_bias=draw.random() < 0.5,
        attention_multiplier=draw.choice((0.1, 0.5, 1.0)),
        embedding_multiplier=draw.choice((1.0, 3.0)),
        residual_multiplier=draw.choice((1.0, 0.3)),
        logits_scaling=draw.choice((1.0, 3.0, 7.0)),
        time_step_limit=time_limits(draw),
    )


@case("granite_hybrid", GraniteMoeHybridForCausalLM)
def granite_hybrid(draw: Draw) -> GraniteMoeHybridConfig:
    return config(draw, num_local_experts=0, num_experts_per_tok=0)


@case("granite_hybrid_moe", GraniteMoeHybridForCausalLM)
def granite_hybrid_moe(draw: Draw) -> GraniteMoeHybridConfig:
    experts = draw.randint(2, 4)
    return config(
        draw,
        num_local_experts=experts,
        num_experts_per_tok=draw.randint(1, 2),
        intermediate_size=draw.choice((8, 12)),
    )
