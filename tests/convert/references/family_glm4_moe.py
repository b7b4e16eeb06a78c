"""GLM-4.5 and Solar Open."""

from cases import Draw, case, rope, sizes
from family_deepseek import draw_biases
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    SolarOpenConfig,
    SolarOpenForCausalLM,
)


def shared(draw: Draw) -> dict:
    """Sizes and experts."""
    found = sizes(draw, layers=(3, 4))
    groups, per_group = draw.choice(((1, 4), (2, 3), (3, 2)))
    top_groups = draw.randint(1, groups)
    return found | dict(
        attention_bias=draw.random() < 0.5,
        n_routed_experts=groups * per_group,
        n_group=groups,
        topk_group=top_groups,
        num_experts_per_tok=draw.randint(1, min(3, top_groups * per_group)),
        moe_intermediate_size=draw.randint(4, 8),
        n_shared_experts=draw.randint(1, 2),
        norm_topk_prob=draw.random() < 0.7,
        routed_scaling_factor=draw.choice((1.0, 1.5, 2.5)),
    )


@case("glm4_moe", Glm4MoeForCausalLM, draw_biases)
def glm4_moe(draw: Draw) -> Glm4MoeConfig:
    found, scaled = shared(draw), rope(draw, scaled=("linear", "yarn"))
    size = found["head_dim"]
    if draw.random() < 0.7 or size % 4:  # half of the head, the class's default, may be odd
        rotated = draw.choice(range(2, size + 1, 2))
        scaled["partial_rotary_factor"] = min((rotated + draw.choice((0.0, 0.6))) / size, 1.0)
    return Glm4MoeConfig(
        **found,
        rope_parameters=scaled,
        use_qk_norm=draw.random() < 0.5,
        first_k_dense_replace=draw.randint(0, 2),
    )


@case("solar_open", SolarOpenForCausalLM, draw_biases)
def solar_open(draw: Draw) -> SolarOpenConfig:
    found = shared(draw)
    found.pop("intermediate_size")
    return SolarOpenConfig(**found, rope_parameters=rope(draw))
