"""Gemma 4's text models: dense, with per-layer inputs and shared keys, and with experts."""

import torch
from cases import Draw, case, rope, sizes, window
from transformers import Gemma4ForCausalLM, Gemma4TextConfig


def scalars(model, draw: Draw) -> None:
    """The scalar of each layer, a buffer."""
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.data = torch.full((1,), draw.choice((0.5, 0.75, 1.25)))


def drawn(draw: Draw) -> dict:
    """Sizes and options of attention."""
    found = sizes(draw)
    heads = found["num_attention_heads"]
    kinds = ("full_attention", "sliding_attention")
    layers = [draw.choice(kinds) for _ in range(found["num_hidden_layers"] - 1)]
    full = rope(draw, scaled=("linear", "llama3"))
    if draw.random() < 0.7:
        fraction = draw.choice((0.25, 0.5, 0.8))
        full = dict(rope_type="proportional", rope_theta=1e4, partial_rotary_factor=fraction)
    return found | dict(
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


def share_keys(draw: Draw, found: dict) -> dict:
    """Layers of both types, of which the last read keys of those below, and perhaps wider ones."""
    kinds = ["full_attention", "sliding_attention"]
    own = [draw.choice(kinds) for _ in range(draw.randint(0, 2))] + kinds
    draw.shuffle(own)
    shared = [draw.choice(kinds) for _ in range(draw.randint(0, 2))] + ["full_attention"]
    return found | dict(
        layer_types=own + shared,
        num_hidden_layers=len(own + shared),
        num_kv_shared_layers=len(shared),
        use_double_wide_mlp=draw.random() < 0.5,
    )


def per_layer(draw: Draw, found: dict, more: int = 0) -> dict:
    """Per-layer inputs of a vocabulary that may be larger.

    transformers 5.23 runs shared keys only together with them.
    """
    return found | dict(
        hidden_size_per_layer_input=draw.choice((3, 4, 6)),
        vocab_size_per_layer_input=found["vocab_size"] + more + draw.choice((0, 3)),
    )


@case("gemma4", Gemma4ForCausalLM, scalars)
def gemma4(draw: Draw) -> Gemma4TextConfig:
    return Gemma4TextConfig(**drawn(draw))


@case("gemma4_shared", Gemma4ForCausalLM, scalars)
def gemma4_shared(draw: Draw) -> Gemma4TextConfig:
    found = share_keys(draw, drawn(draw))
    return Gemma4TextConfig(**per_layer(draw, found, 0 if draw.random() < 0.8 else 40))


@case("gemma4_moe", Gemma4ForCausalLM, scalars)
def gemma4_moe(draw: Draw) -> Gemma4TextConfig:
    found, experts = drawn(draw), draw.randint(3, 6)
    inputs = draw.random() < 0.3
    if inputs:
        found = per_layer(draw, found)
    if draw.random() < 0.3 and inputs:
        found = share_keys(draw, found)
    return Gemma4TextConfig(
        **found,
        enable_moe_block=True,
        num_experts=experts,
        top_k_experts=draw.randint(1, experts - 1),
        moe_intermediate_size=draw.randint(4, 9),
    )
