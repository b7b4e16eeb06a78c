"""Mamba, Falcon-Mamba and Jamba."""

from cases import Draw, case, sizes
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)


def draw_mamba(draw: Draw) -> dict[str, object]:
    """The keys of Mamba and Falcon-Mamba; `intermediate_size` need not be a multiple of the width."""
    expand = draw.choice((1, 2, 3))
    width = draw.choice((20, 24, 28))
    found = dict(
        vocab_size=draw.randint(40, 72),
        hidden_size=width,
        num_hidden_layers=draw.randint(2, 4),
        expand=expand,
        state_size=draw.choice((1, 4, 7)),
        conv_kernel=draw.choice((2, 3, 4)),
        time_step_rank=draw.choice(("auto", 3, 5)),
        use_bias=draw.random() < 0.5,
        use_conv_bias=draw.random() < 0.5,
        hidden_act=draw.choice(("silu", "silu", "swish")),
        layer_norm_epsilon=draw.choice((1e-5, 1e-6)),
        residual_in_fp32=draw.random() < 0.5,
        tie_word_embeddings=draw.random() < 0.5,
    )
    if draw.random() < 0.4:
        found["intermediate_size"] = draw.choice((18, 30, 36))
    return found


@case("mamba_1", MambaForCausalLM)
def mamba(draw: Draw) -> MambaConfig:
    return MambaConfig(**draw_mamba(draw))


@case("falcon_mamba", FalconMambaForCausalLM)
def falcon_mamba(draw: Draw) -> FalconMambaConfig:
    return FalconMambaConfig(**draw_mamba(draw), mixer_rms_eps=draw.choice((1e-6, 1e-3)))


@case("jamba", JambaForCausalLM)
def jamba(draw: Draw) -> JambaConfig:
    found = sizes(draw, layers=(3, 5), head_dim=False)
    attention, experts = draw.choice((1, 2, 3, 9)), draw.choice((1, 2, 3))
    number = draw.choice((1, 2, 3, 4))
    found["intermediate_size"] = draw.randint(8, 16)
    return JambaConfig(
        **found,
        attn_layer_period=attention,
        attn_layer_offset=draw.randrange(attention),
        expert_layer_period=experts,
        expert_layer_offset=draw.randrange(experts),
        num_experts=number,
        num_experts_per_tok=draw.randint(1, min(2, number)),
        hidden_act=draw.choice(("silu", "silu", "swish")),
        mamba_d_state=draw.choice((1, 4, 7)),
        mamba_d_conv=draw.choice((2, 3, 4)),
        mamba_expand=draw.choice((1, 2)),
        mamba_dt_rank=draw.choice(("auto", 3, 5)),
        mamba_conv_bias=draw.random() < 0.5,
        mamba_proj_bias=draw.random() < 0.5,
    )
