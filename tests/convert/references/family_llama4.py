"""Llama 4's text model, with dense layers."""

from cases import Draw, case, rope, sizes, window
from transformers import Llama4ForCausalLM, Llama4TextConfig


@case("llama4", Llama4ForCausalLM)
def llama4(draw: Draw) -> Llama4TextConfig:
    found = sizes(draw)
    layers = range(found["num_hidden_layers"])
    if draw.random() < 0.5:
        found["no_rope_layers"] = [draw.randint(0, 1) for _ in layers][:-1] + [1]
    else:
        found["no_rope_layer_interval"] = draw.choice((2, 3))
    return Llama4TextConfig(
        **found,
        intermediate_size_mlp=draw.randint(20, 44),
        moe_layers=[],
        rope_parameters=rope(draw, scaled=("llama3",)),
        attention_chunk_size=window(draw),
        use_qk_norm=draw.random() < 0.7,
        attn_temperature_tuning=draw.random() < 0.7,
        floor_scale=draw.choice((4, 16)),
        attn_scale=draw.choice((0.1, 0.3)),
        attention_bias=draw.random() < 0.5,
    )
