"""Cohere2."""

from cases import Draw, case, rope, sizes, types, window
from transformers import Cohere2Config, Cohere2ForCausalLM


@case("cohere2", Cohere2ForCausalLM)
def cohere2(draw: Draw) -> Cohere2Config:
    found = sizes(draw)
    return Cohere2Config(
        **found | dict(layer_norm_eps=found.pop("rms_norm_eps")),
        rope_parameters=rope(draw),
        sliding_window=window(draw),
        layer_types=types(draw, found["num_hidden_layers"]),
        attention_bias=draw.random() < 0.5,
        logit_scale=draw.choice((0.0625, 0.3, 1.5)),
    )
