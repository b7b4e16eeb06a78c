"""Qwen3-Next and Qwen3.5."""

from cases import Draw, case, rope, sizes
from transformers import (
    Qwen3_5ForCausalLM,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)


def shared(draw: Draw) -> dict:
    """Sizes, types of layers, Gated DeltaNet and partial RoPE."""
    found = sizes(draw, layers=(3, 4))
    depth = found["num_hidden_layers"]
    types = ["linear_attention", "full_attention"]
    types += [draw.choice(("linear_attention", "full_attention")) for _ in range(depth - 2)]
    draw.shuffle(types)
    if draw.random() < 0.3:
        found |= dict(layer_types=None, full_attention_interval=draw.choice((2, 3)))
    else:
        found["layer_types"] = types
    found["head_dim"] = draw.choice((8, 12))
    fraction = draw.choice((0.25, 0.5, 0.75, 1.0) if found["head_dim"] == 8 else (0.2, 0.5, 1.0))
    heads = draw.choice((1, 2, 3))
    return found | dict(
        rope_parameters=rope(draw, scaled=("linear", "yarn"))
        | dict(partial_rotary_factor=fraction),
        linear_num_key_heads=heads,
        linear_num_value_heads=heads * draw.choice((1, 2, 3)),
        linear_key_head_dim=draw.choice((4, 6, 8)),
        linear_value_head_dim=draw.choice((4, 6, 8)),
        linear_conv_kernel_dim=draw.choice((2, 3, 4)),
    )


def experts(draw: Draw) -> dict:
    """A mixture of experts with a shared one."""
    number = draw.randint(3, 6)
    return dict(
        num_experts=number,
        num_experts_per_tok=draw.randint(1, min(number, 3)),
        moe_intermediate_size=draw.randint(4, 9),
        shared_expert_intermediate_size=draw.randint(4, 9),
    )


@case("qwen3_next", Qwen3NextForCausalLM)
def qwen3_next(draw: Draw) -> Qwen3NextConfig:
    found = shared(draw) | experts(draw) | dict(norm_topk_prob=draw.random() < 0.7)
    if draw.random() < 0.5:
        found["mlp_only_layers"] = [draw.randrange(found["num_hidden_layers"])]
    elif draw.random() < 0.5:
        found["decoder_sparse_step"] = 2
    return Qwen3NextConfig(**found)


@case("qwen3_5_dense", Qwen3_5ForCausalLM)
def qwen3_5_dense(draw: Draw) -> Qwen3_5TextConfig:
    return Qwen3_5TextConfig(**shared(draw))


@case("qwen3_5_moe", Qwen3_5MoeForCausalLM)
def qwen3_5_moe(draw: Draw) -> Qwen3_5MoeTextConfig:
    found = shared(draw) | experts(draw)
    found.pop("intermediate_size")
    return Qwen3_5MoeTextConfig(**found)
