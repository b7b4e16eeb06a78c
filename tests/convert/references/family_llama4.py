"""Llama 4's text model, with dense layers alone or with experts."""

from cases import Draw, case, rope, sizes, window
from transformers import Llama4ForCausalLM, Llama4TextConfig


def shared(draw: Draw, layers: tuple[int, int]) -> dict:
    """Sizes and options of attention."""
    found = sizes(draw, layers=layers)
    depth = range(found["num_hidden_layers"])
    if draw.random() < 0.5:
        found["no_rope_layers"] = [draw.randint(0, 1) for _ in depth][:-1] + [1]
    else:
        found["no_rope_layer_interval"] = draw.choice((2, 3))
    return found | dict(
        intermediate_size_mlp=draw.randint(20, 44),
        rope_parameters=rope(draw, scaled=("llama3",)),
        attention_chunk_size=window(draw),
        use_qk_norm=draw.random() < 0.7,
        attn_temperature_tuning=draw.random() < 0.7,
        floor_scale=draw.choice((4, 16)),
        attn_scale=draw.choice((0.1, 0.3)),
        attention_bias=draw.random() < 0.5,
    )


@case("llama4", Llama4ForCausalLM)
def llama4(draw: Draw) -> Llama4TextConfig:
    return Llama4TextConfig(**shared(draw, (3, 5)), moe_layers=[])


@case("llama4_moe", Llama4ForCausalLM)
def llama4_moe(draw: Draw) -> Llama4TextConfig:
    found, number = shared(draw, (3, 4)), draw.randint(2, 4)
    found["intermediate_size"] = draw.randint(5, 10)
    if draw.random() < 0.4:
        found["moe_layers"] = sorted(draw.sample(range(found["num_hidden_layers"]), 2))
    else:
        found["interleave_moe_layer_step"] = draw.choice((1, 2))
    return Llama4TextConfig(
        **found, num_local_experts=number, num_experts_per_tok=draw.randint(1, min(2, number))
    )
