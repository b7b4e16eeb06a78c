"""Mamba-2."""

from cases import Draw, case
from transformers import Mamba2Config, Mamba2ForCausalLM


def time_limits(draw: Draw) -> tuple[float, float]:
    """Limits of the time step: none, a lowest one, or both; some steps reach them."""
    return draw.choice(((0.0, float("inf")), (0.4, float("inf")), (0.3, 1.2)))


@case("mamba2", Mamba2ForCausalLM)
def mamba2(draw: Draw) -> Mamba2Config:
    heads, head_dim = draw.choice(((6, 8), (4, 12), (12, 4), (6, 12), (4, 8)))
    expand = draw.choice((1, 2))
    return Mamba2Config(
        vocab_size=draw.randint(40, 72),
        hidden_size=heads * head_dim // expand,
        num_hidden_layers=draw.randint(2, 4),
        num_heads=heads,
        head_dim=head_dim,
        expand=expand,
        state_size=draw.choice((4, 6, 8)),
        n_groups=draw.choice((1, 2)),
        conv_kernel=draw.choice((2, 3, 4)),
        use_bias=draw.random() < 0.5,
        use_conv_bias=draw.random() < 0.5,
        layer_norm_epsilon=draw.choice((1e-5, 1e-6)),
        time_step_limit=time_limits(draw),
        tie_word_embeddings=draw.random() < 0.5,
        chunk_size=draw.choice((8, 16)),
    )
