"""Qwen2 and Qwen3."""

from cases import Draw, case, rope, sizes, window
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM


def windows(draw: Draw) -> dict:
    """Windows in the upper layers, or where layer_types says, or nowhere."""
    found = dict(use_sliding_window=draw.random() < 0.7, sliding_window=window(draw))
    return found | dict(max_window_layers=draw.randint(0, 2))


@case("qwen2", Qwen2ForCausalLM)
def qwen2(draw: Draw) -> Qwen2Config:
    return Qwen2Config(**sizes(draw), **windows(draw), rope_parameters=rope(draw))


@case("qwen3", Qwen3ForCausalLM)
def qwen3(draw: Draw) -> Qwen3Config:
    bias = draw.random() < 0.5
    found = sizes(draw) | windows(draw)
    return Qwen3Config(**found, rope_parameters=rope(draw), attention_bias=bias)
