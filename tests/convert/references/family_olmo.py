"""OLMo 2 and 3."""

from cases import Draw, case, rope, sizes, types, window
from transformers import Olmo2Config, Olmo2ForCausalLM, Olmo3Config, Olmo3ForCausalLM


@case("olmo2", Olmo2ForCausalLM)
def olmo2(draw: Draw) -> Olmo2Config:
    bias = draw.random() < 0.5
    return Olmo2Config(**sizes(draw), rope_parameters=rope(draw), attention_bias=bias)


@case("olmo3", Olmo3ForCausalLM)
def olmo3(draw: Draw) -> Olmo3Config:
    found = sizes(draw)
    return Olmo3Config(
        **found,
        rope_parameters={
            "full_attention": rope(draw),
            "sliding_attention": rope(draw, scaled=()),
        },
        sliding_window=window(draw),
        layer_types=types(draw, found["num_hidden_layers"]),
        attention_bias=draw.random() < 0.5,
    )
