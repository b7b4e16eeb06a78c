"""Mixtral."""

from cases import Draw, case, rope, sizes, window
from transformers import MixtralConfig, MixtralForCausalLM


@case("mixtral", MixtralForCausalLM)
def mixtral(draw: Draw) -> MixtralConfig:
    number = draw.randint(2, 5)
    found = sizes(draw, layers=(3, 4)) | dict(intermediate_size=draw.randint(6, 12))
    return MixtralConfig(
        **found,
        rope_parameters=rope(draw),
        sliding_window=window(draw) if draw.random() < 0.6 else None,
        num_local_experts=number,
        num_experts_per_tok=draw.randint(1, min(3, number)),
    )
