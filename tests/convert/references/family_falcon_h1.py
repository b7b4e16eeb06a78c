"""Falcon-H1."""

from cases import Draw, case, rope, sizes
from family_bamba import mamba2_sizes
from family_mamba2 import time_limits
from transformers import FalconH1Config, FalconH1ForCausalLM


@case("falcon_h1", FalconH1ForCausalLM)
def falcon_h1(draw: Draw) -> FalconH1Config:
    found = sizes(draw, layers=(2, 3), head_dim=False)
    mamba = mamba2_sizes(draw, found["hidden_size"])
    mamba["mamba_d_head"] = draw.choice((4, 6))

    def factor() -> float:
        return draw.choice((1.0, 0.5, 0.7, 1.6))

    return FalconH1Config(
        **found,
        **mamba,
        mamba_d_ssm=mamba["mamba_n_heads"] * mamba["mamba_d_head"],
        mamba_rms_norm=draw.random() < 0.6,
        mamba_norm_before_gate=draw.random() < 0.5,
        projectors_bias=draw.random() < 0.5,
        rope_parameters=rope(draw),
        hidden_act=draw.choice(("silu", "swish")),
        attention_bias=draw.random() < 0.5,
        mlp_bias=draw.random() < 0.5,
        time_step_limit=time_limits(draw),
        mlp_multipliers=[factor(), factor()],
        ssm_multipliers=[factor() for _ in range(5)],
        **{
            f"{name}_multiplier": factor()
            for name in (
                "lm_head",
                "embedding",
                "key",
                "attention_in",
                "attention_out",
                "ssm_in",
                "ssm_out",
            )
        },
    )
