"""Bamba."""

from cases import Draw, case, rope, sizes
from family_mamba2 import time_limits
from transformers import BambaConfig, BambaForCausalLM


def mamba2_sizes(draw: Draw, width: int) -> dict[str, object]:
    """The keys of a Mamba-2 mixer that begin with "mamba_"; groups divide heads."""
    heads = draw.choice([n for n in (2, 4, 6) if width % n == 0])
    expand = draw.choice((1, 2))
    return dict(
        mamba_n_heads=heads,
        mamba_d_head=draw.choice(("auto", expand * width // heads)),
        mamba_n_groups=draw.choice((1, 2)),
        mamba_d_state=draw.choice((4, 6, 8)),
        mamba_d_conv=draw.choice((2, 3, 4)),
        mamba_expand=expand,
        mamba_conv_bias=draw.random() < 0.5,
        mamba_proj_bias=draw.random() < 0.5,
        mamba_chunk_size=draw.choice((8, 16)),
    )


def even_heads(draw: Draw, **options) -> dict[str, object]:
    """`sizes` with heads whose half has an even size, and an even width."""
    while True:
        found = sizes(draw, head_dim=False, **options)
        if found["hidden_size"] // found["num_attention_heads"] % 4 == 0:
            return found


@case("bamba", BambaForCausalLM)
def bamba(draw: Draw) -> BambaConfig:
    found = even_heads(draw)
    depth = found["num_hidden_layers"]
    return BambaConfig(
        **found,
        **mamba2_sizes(draw, found["hidden_size"]),
        attn_layer_indices=sorted(draw.sample(range(depth), draw.randint(1, depth - 1))),
        rope_parameters=rope(draw, scaled=("linear", "llama3")),
        hidden_act=draw.choice(("silu", "silu", "swish")),
        attention_bias=draw.random() < 0.5,
        mlp_bias=draw.random() < 0.5,
        time_step_limit=time_limits(draw),
    )
