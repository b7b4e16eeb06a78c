"""Qwen3 with mixtures of experts."""

from cases import Draw, case, rope, sizes, window
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM


@case("qwen3_moe", Qwen3MoeForCausalLM)
def qwen3_moe(draw: Draw) -> Qwen3MoeConfig:
    found = sizes(draw, layers=(3, 4))
    depth, number = found["num_hidden_layers"], draw.randint(3, 6)
    if draw.random() < 0.5:
        found["mlp_only_layers"] = draw.sample(range(depth), draw.randint(1, 2))
    elif draw.random() < 0.5:
        found["decoder_sparse_step"] = draw.choice((2, 3))
    return Qwen3MoeConfig(
        **found,
        rope_parameters=rope(draw),
        attention_bias=draw.random() < 0.5,
        use_sliding_window=draw.random() < 0.5,
        sliding_window=window(draw),
        num_experts=number,
        num_experts_per_tok=draw.randint(1, min(number, 3)),
        moe_intermediate_size=draw.randint(4, 9),
        norm_topk_prob=draw.random() < 0.6,
    )
