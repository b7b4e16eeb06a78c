"""DeepSeek-V3, DeepSeek-V3.2 and GLM-5."""

import torch
from cases import Draw, case, rope, sizes
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    GlmMoeDsaConfig,
    GlmMoeDsaForCausalLM,
)


def draw_biases(model: torch.nn.Module, draw: Draw) -> None:
    """Biases of the choice that change choices; they are buffers."""
    for name, buffer in model.named_buffers():
        if name.endswith(("e_score_correction_bias", "expert_bias")):
            buffer.data = torch.tensor([draw.uniform(-0.3, 0.3) for _ in buffer])


def latent(draw: Draw) -> dict:
    """Sizes of latent attention and of experts."""
    found = sizes(draw, layers=(3, 4), head_dim=False)
    found["num_key_value_heads"] = found["num_attention_heads"]
    groups, per_group = draw.choice(((1, 4), (2, 3), (3, 2), (4, 2)))
    top_groups = draw.randint(1, groups)
    return found | dict(
        kv_lora_rank=draw.choice((6, 8, 10)),
        q_lora_rank=draw.choice((None, 6, 8)),
        qk_nope_head_dim=draw.choice((4, 6)),
        qk_rope_head_dim=draw.choice((4, 6, 8)),
        v_head_dim=draw.choice((4, 5, 6)),
        num_local_experts=groups * per_group,
        n_group=groups,
        topk_group=top_groups,
        num_experts_per_tok=draw.randint(1, min(3, top_groups * per_group)),
        moe_intermediate_size=draw.randint(4, 8),
        n_shared_experts=draw.randint(1, 2),
        norm_topk_prob=draw.random() < 0.7,
        routed_scaling_factor=draw.choice((1.0, 1.5, 2.5)),
    )


@case("deepseek_v3", DeepseekV3ForCausalLM, draw_biases)
def deepseek_v3(draw: Draw) -> DeepseekV3Config:
    found, scaled = latent(draw), rope(draw, scaled=("yarn",))
    if scaled["rope_type"] == "yarn" and draw.random() < 0.7:
        scaled["mscale_all_dim"] = draw.choice((0.7, 1.0))
        if draw.random() < 0.7:
            scaled["mscale"] = draw.choice((0.7, 1.0, 1.3))
    found["n_routed_experts"] = found.pop("num_local_experts")
    return DeepseekV3Config(
        **found,
        rope_parameters=scaled,
        rope_interleave=draw.random() < 0.7,
        first_k_dense_replace=draw.randint(0, 2),
    )


def sparse(draw: Draw) -> dict:
    """Sizes of latent attention and of its indexer.

    The indexer has many heads, because keys that all heads score 0 are equal, and which of them torch
    chooses is not said.
    """
    found, scaled = latent(draw), rope(draw, scaled=("yarn",))
    if scaled["rope_type"] == "yarn" and draw.random() < 0.7:
        scaled["mscale_all_dim"] = draw.choice((0.7, 1.0))
    depth = found["num_hidden_layers"]
    found["n_routed_experts"] = found.pop("num_local_experts")
    found["q_lora_rank"] = draw.choice((6, 8))
    if draw.random() < 0.5:
        found["mlp_layer_types"] = [draw.choice(("dense", "sparse")) for _ in range(depth)]
    else:
        found["first_k_dense_replace"] = draw.randint(0, 2)
    return found | dict(
        rope_parameters=scaled,
        index_n_heads=draw.choice((12, 16)),
        index_head_dim=draw.choice((8, 10)),
        index_topk=draw.randint(3, 15),
    )


@case("deepseek_v32", DeepseekV32ForCausalLM, draw_biases, exact=True)
def deepseek_v32(draw: Draw) -> DeepseekV32Config:
    return DeepseekV32Config(**sparse(draw))


@case("glm_moe_dsa", GlmMoeDsaForCausalLM, draw_biases, exact=True)
def glm_moe_dsa(draw: Draw) -> GlmMoeDsaConfig:
    return GlmMoeDsaConfig(**sparse(draw))


@case("glm_moe_dsa_shared", GlmMoeDsaForCausalLM, draw_biases, exact=True)
def glm_moe_dsa_shared(draw: Draw) -> GlmMoeDsaConfig:
    found = sparse(draw)
    rest = [
        draw.choice(("full", "shared", "shared")) for _ in range(found["num_hidden_layers"] - 2)
    ]
    return GlmMoeDsaConfig(**found, indexer_types=["full", "shared", *rest])
