"""Llama 2 and 3."""

from cases import Draw, case, rope, sizes
from transformers import LlamaConfig, LlamaForCausalLM


@case("llama", LlamaForCausalLM)
def llama(draw: Draw) -> LlamaConfig:
    return LlamaConfig(
        **sizes(draw),
        rope_parameters=rope(draw),
        attention_bias=draw.random() < 0.5,
        mlp_bias=draw.random() < 0.5,
    )
