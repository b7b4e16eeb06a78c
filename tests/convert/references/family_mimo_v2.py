"""MiMo-V2-Flash."""

from cases import Draw, case, rope, sizes, types, window
from family_deepseek import draw_biases
from transformers import MiMoV2FlashConfig, MiMoV2FlashForCausalLM


def partial(draw: Draw, size: int) -> dict:
    """RoPE of a part of a head; transformers rounds down."""
    found = rope(draw, scaled=("linear", "yarn"))
    rotated = draw.choice(range(2, size + 1, 2))
    found["partial_rotary_factor"] = min((rotated + draw.choice((0.0, 0.6))) / size, 1.0)
    return found


@case("mimo_v2_flash", MiMoV2FlashForCausalLM, draw_biases)
def mimo_v2_flash(draw: Draw) -> MiMoV2FlashConfig:
    found = sizes(draw, layers=(3, 4))
    depth, heads = found["num_hidden_layers"], draw.choice((2, 4, 6))
    groups = draw.choice([n for n in (1, 2, 3) if heads % (2 * n) == 0])
    found |= dict(
        num_attention_heads=heads,
        num_key_value_heads=groups,
        hidden_size=draw.choice((20, 24, 28)),
        layer_types=types(draw, depth),
    )
    size = found["head_dim"]
    kinds = ("full_attention", "sliding_attention")
    if draw.random() < 0.7:
        found["mlp_layer_types"] = [draw.choice(("dense", "sparse")) for _ in range(depth)]
    groups, per_group = draw.choice(((1, 4), (2, 3), (3, 2)))
    top_groups = draw.randint(1, groups)
    return MiMoV2FlashConfig(
        **found,
        rope_parameters={kind: partial(draw, size) for kind in kinds},
        v_head_dim=draw.choice([n for n in (3, 5, 6, 8, 14) if n != size]),
        attention_value_scale=draw.choice((None, 0.707, 1.3)),
        attention_bias=draw.random() < 0.5,
        sliding_window=window(draw),
        n_routed_experts=groups * per_group,
        n_group=groups,
        topk_group=top_groups,
        num_experts_per_tok=draw.randint(1, min(3, top_groups * per_group)),
        moe_intermediate_size=draw.randint(4, 8),
        norm_topk_prob=draw.random() < 0.7,
        routed_scaling_factor=draw.choice((None, 1.0, 2.5)),
    )
