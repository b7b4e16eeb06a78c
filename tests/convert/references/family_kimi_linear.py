"""Kimi Linear."""

from cases import Draw, case
from family_deepseek import draw_biases, latent
from transformers import KimiLinearConfig, KimiLinearForCausalLM


@case("kimi_linear", KimiLinearForCausalLM, draw_biases)
def kimi_linear(draw: Draw) -> KimiLinearConfig:
    found = latent(draw)
    depth = found["num_hidden_layers"]
    types = ["linear_attention", "full_attention"]
    types += [draw.choice(("linear_attention", "full_attention")) for _ in range(depth - 2)]
    draw.shuffle(types)
    found |= dict(tie_word_embeddings=False, layer_types=types)
    if draw.random() < 0.5:
        found["mlp_layer_types"] = [draw.choice(("dense", "sparse")) for _ in range(depth)]
    return KimiLinearConfig(
        **found,
        linear_num_heads=draw.choice((1, 2, 3)),
        linear_head_dim=draw.choice((4, 6, 8)),
        linear_conv_kernel_dim=draw.choice((2, 3, 4)),
    )
