"""OLMo Hybrid."""

from cases import Draw, case, rope, sizes
from transformers import OlmoHybridConfig, OlmoHybridForCausalLM

#: Of a config that says nothing of RoPE, transformers 5.23 makes one with RoPE.
NO_ROPE = dict(rope_theta=None, rope_type="default")


@case("olmo_hybrid", OlmoHybridForCausalLM)
def olmo_hybrid(draw: Draw) -> OlmoHybridConfig:
    found = sizes(draw, layers=(3, 4), head_dim=False)
    if draw.random() < 0.7:
        types = ["linear_attention", "full_attention"]
        more = found["num_hidden_layers"] - 2
        types += [draw.choice(("linear_attention", "full_attention")) for _ in range(more)]
        draw.shuffle(types)
        found["layer_types"] = types
    heads = draw.choice((1, 2, 3))
    if draw.random() < 0.7:
        found |= dict(
            linear_num_key_heads=heads,
            linear_num_value_heads=heads * draw.choice((1, 2)),
            linear_key_head_dim=draw.choice((4, 6, 8)),
        )
    if draw.random() < 0.5:
        found["linear_value_head_dim"] = draw.choice((4, 6, 8))
    return OlmoHybridConfig(
        **found,
        rope_parameters=rope(draw) if draw.random() < 0.4 else NO_ROPE,
        attention_bias=draw.random() < 0.3,
        linear_allow_neg_eigval=draw.random() < 0.7,
        linear_conv_kernel_dim=draw.choice((2, 3, 4)),
    )
