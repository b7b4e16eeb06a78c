"""AFMoE (Trinity)."""

from cases import Draw, case, rope, sizes, types, window
from transformers import AfmoeConfig, AfmoeForCausalLM


@case("afmoe", AfmoeForCausalLM)
def afmoe(draw: Draw) -> AfmoeConfig:
    found = sizes(draw, layers=(3, 4))
    number = draw.randint(3, 5)
    return AfmoeConfig(
        **found,
        rope_parameters=rope(draw),
        layer_types=types(draw, found["num_hidden_layers"]),
        global_attn_every_n_layers=draw.choice((2, 3)),
        sliding_window=window(draw),
        attention_bias=draw.random() < 0.5,
        num_dense_layers=draw.randint(0, 2),
        num_experts=number,
        num_experts_per_tok=draw.randint(1, 3),
        num_shared_experts=draw.randint(1, 2),
        moe_intermediate_size=draw.randint(4, 8),
        route_scale=draw.choice((1.0, 1.5, 2.8)),
        mup_enabled=draw.random() < 0.5,
    )
