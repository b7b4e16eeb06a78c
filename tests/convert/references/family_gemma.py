"""Gemma 2 and 3."""

from cases import Draw, case, rope, sizes, types, window
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig


def common(draw: Draw) -> dict:
    found = sizes(draw)
    return found | dict(
        query_pre_attn_scalar=draw.choice((6, 16, 24)),
        hidden_activation=draw.choice(("gelu_pytorch_tanh", "silu", "gelu")),
        attention_bias=draw.random() < 0.3,
        sliding_window=window(draw),
        layer_types=types(draw, found["num_hidden_layers"]),
        attn_logit_softcapping=draw.choice((None, 2.0, 50.0)),
        final_logit_softcapping=draw.choice((None, 5.0, 30.0)),
    )


@case("gemma2", Gemma2ForCausalLM)
def gemma2(draw: Draw) -> Gemma2Config:
    return Gemma2Config(**common(draw), rope_parameters=rope(draw))


@case("gemma3", Gemma3ForCausalLM)
def gemma3(draw: Draw) -> Gemma3TextConfig:
    ropes = {
        "full_attention": rope(draw),
        "sliding_attention": rope(draw, scaled=()),
    }
    return Gemma3TextConfig(**common(draw), rope_parameters=ropes)
