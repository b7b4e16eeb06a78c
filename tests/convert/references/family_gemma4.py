"""Gemma 4's text model without per-layer inputs, shared keys and experts."""

import torch
from cases import Draw, case, rope, sizes, window
from transformers import Gemma4ForCausalLM, Gemma4TextConfig


def scalars(model, draw: Draw) -> None:
    """The scalar of each layer, a buffer."""
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.data = torch.full((1,), draw.choice((0.5, 0.75, 1.25)))


@case("gemma4", Gemma4ForCausalLM, scalars)
def gemma4(draw: Draw) -> Gemma4TextConfig:
    found = sizes(draw)
    heads = found["num_attention_heads"]
    kinds = ("full_attention", "sliding_attention")
    layers = [draw.choice(kinds) for _ in range(found["num_hidden_layers"] - 1)]
    full = rope(draw, scaled=("linear", "llama3"))
    if draw.random() < 0.7:
        fraction = draw.choice((0.25, 0.5, 0.8))
        full = dict(rope_type="proportional", rope_theta=1e4, partial_rotary_factor=fraction)
    return Gemma4TextConfig(
        **found,
        global_head_dim=draw.choice((8, 12, 16)),
        num_global_key_value_heads=draw.choice((None, 1, heads)),
        attention_k_eq_v=draw.random() < 0.6,
        hidden_activation=draw.choice(("gelu_pytorch_tanh", "silu")),
        attention_bias=draw.random() < 0.3,
        sliding_window=window(draw),
        layer_types=draw.choice((None, [*layers, "full_attention"])),
        final_logit_softcapping=draw.choice((None, 5.0, 30.0)),
        rope_parameters={"full_attention": full, "sliding_attention": rope(draw, scaled=())},
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
    )
