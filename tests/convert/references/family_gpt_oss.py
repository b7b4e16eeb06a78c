"""gpt-oss."""

from cases import Draw, case, rope, sizes, types, window
from transformers import GptOssConfig, GptOssForCausalLM


@case("gpt_oss", GptOssForCausalLM)
def gpt_oss(draw: Draw) -> GptOssConfig:
    found = sizes(draw, layers=(3, 4)) | dict(intermediate_size=draw.randint(6, 12))
    scaled = rope(draw, scaled=("yarn", "yarn", "yarn"))
    if scaled["rope_type"] == "yarn":
        scaled["truncate"] = draw.random() < 0.5
    number = draw.randint(3, 5)
    return GptOssConfig(
        **found,
        rope_parameters=scaled if draw.random() < 0.8 else None,
        layer_types=types(draw, found["num_hidden_layers"]),
        sliding_window=window(draw),
        attention_bias=draw.random() < 0.7,
        num_local_experts=number,
        num_experts_per_tok=draw.randint(1, 3),
        swiglu_limit=draw.choice((0.5, 1.0, 7.0)),  # the smaller ones are reached
        swiglu_alpha=draw.choice((1.0, 1.702, 2.5)),
    )
