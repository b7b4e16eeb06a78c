"""LFM2."""

from cases import Draw, case, rope, sizes
from transformers import Lfm2Config, Lfm2ForCausalLM


@case("lfm2", Lfm2ForCausalLM)
def lfm2(draw: Draw) -> Lfm2Config:
    found = sizes(draw, head_dim=False)
    depth = found["num_hidden_layers"]
    found["norm_eps"] = found.pop("rms_norm_eps")
    types = ["full_attention", "conv", *draw.choices(("full_attention", "conv"), k=depth - 2)]
    draw.shuffle(types)
    return Lfm2Config(
        **found,
        layer_types=types,
        rope_parameters=rope(draw),
        conv_bias=draw.random() < 0.5,
        conv_L_cache=draw.choice((2, 3, 4)),
        block_auto_adjust_ff_dim=draw.random() < 0.5,
        block_multiple_of=draw.choice((4, 8)),
        block_ffn_dim_multiplier=draw.choice((1.0, 1.3)),
    )
