"""Mistral."""

from cases import Draw, case, rope, sizes, window
from transformers import MistralConfig, MistralForCausalLM


@case("mistral", MistralForCausalLM)
def mistral(draw: Draw) -> MistralConfig:
    local = window(draw) if draw.random() < 0.7 else None
    return MistralConfig(**sizes(draw), rope_parameters=rope(draw), sliding_window=local)
