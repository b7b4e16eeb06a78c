"""LFM2."""

from cases import Draw, case, rope, sizes
from family_deepseek import draw_biases
from transformers import Lfm2Config, Lfm2ForCausalLM, Lfm2MoeConfig, Lfm2MoeForCausalLM


def shared(draw: Draw) -> dict:
    """Sizes, types of layers, RoPE and convolutions."""
    found = sizes(draw, head_dim=False)
    depth = found["num_hidden_layers"]
    found["norm_eps"] = found.pop("rms_norm_eps")
    types = ["full_attention", "conv", *draw.choices(("full_attention", "conv"), k=depth - 2)]
    draw.shuffle(types)
    return found | dict(
        layer_types=types,
        rope_parameters=rope(draw),
        conv_bias=draw.random() < 0.5,
        conv_L_cache=draw.choice((2, 3, 4)),
    )


@case("lfm2", Lfm2ForCausalLM)
def lfm2(draw: Draw) -> Lfm2Config:
    return Lfm2Config(
        **shared(draw),
        block_auto_adjust_ff_dim=draw.random() < 0.5,
        block_multiple_of=draw.choice((4, 8)),
        block_ffn_dim_multiplier=draw.choice((1.0, 1.3)),
    )


@case("lfm2_moe", Lfm2MoeForCausalLM, draw_biases)
def lfm2_moe(draw: Draw) -> Lfm2MoeConfig:
    number = draw.randint(3, 6)
    return Lfm2MoeConfig(
        **shared(draw),
        num_dense_layers=draw.randint(0, 2),
        num_experts=number,
        num_experts_per_tok=draw.randint(1, 3),
        moe_intermediate_size=draw.randint(4, 8),
        use_expert_bias=draw.random() < 0.7,
        norm_topk_prob=draw.random() < 0.7,
        routed_scaling_factor=draw.choice((1.0, 1.5)),
    )
