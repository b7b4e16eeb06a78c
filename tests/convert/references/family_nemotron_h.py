"""Nemotron-H, and its mixtures of experts."""

import torch
from cases import Draw, case
from transformers import NemotronHConfig, NemotronHForCausalLM


def draw_choice_bias(model: torch.nn.Module, draw: Draw) -> None:
    """Biases of the experts' choice, which are buffers: zero in a new model."""
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.data = torch.tensor([draw.gauss(0, 0.3) for _ in buffer], dtype=buffer.dtype)


def config(draw: Draw, kinds: tuple[str, ...], **options) -> NemotronHConfig:
    layers = [*kinds, *draw.choices(kinds, k=draw.randint(0, 1))]
    draw.shuffle(layers)
    heads = draw.choice((2, 4))
    return NemotronHConfig(
        vocab_size=draw.randint(40, 60),
        hidden_size=draw.choice((20, 24, 28)),
        layers_block_type=layers,
        tie_word_embeddings=False,
        num_attention_heads=heads,
        num_key_value_heads=draw.choice([n for n in (1, 2, 4) if heads % n == 0]),
        head_dim=draw.choice((6, 8)),
        intermediate_size=draw.randint(20, 40),
        ssm_state_size=draw.choice((4, 6, 8)),
        mamba_num_heads=draw.choice((2, 4)),
        mamba_head_dim=draw.choice((6, 8)),
        n_groups=draw.choice((1, 2)),
        conv_kernel=draw.choice((2, 3, 4)),
        expand=1,
        time_step_min=draw.choice((0.001, 0.3)),
        use_conv_bias=draw.random() < 0.5,
        use_bias=draw.random() < 0.5,
        chunk_size=draw.choice((8, 16)),
        layer_norm_epsilon=draw.choice((1e-5, 1e-6)),
        max_position_embeddings=draw.choice((64, 128)),
        pad_token_id=None,
        **options,
    )


@case("nemotron_h", NemotronHForCausalLM)
def nemotron_h(draw: Draw) -> NemotronHConfig:
    kinds = ("linear_attention", "full_attention", "mlp")
    activation = draw.choice(("relu2", "relu2", "silu", "gelu"))
    return config(draw, kinds, mlp_hidden_act=activation, mlp_bias=draw.random() < 0.5)


@case("nemotron_h_moe", NemotronHForCausalLM, initialise=draw_choice_bias)
def nemotron_h_moe(draw: Draw) -> NemotronHConfig:
    kinds = ("linear_attention", "full_attention", "moe", *draw.choice(((), ("mlp",))))
    groups = draw.choice((1, 2))
    experts = groups * draw.choice((2, 3))
    return config(
        draw,
        kinds,
        n_routed_experts=experts,
        n_group=groups,
        topk_group=draw.randint(1, groups),
        num_experts_per_tok=2,
        moe_intermediate_size=draw.choice((8, 12)),
        moe_shared_expert_intermediate_size=draw.randint(6, 12),
        moe_latent_size=draw.choice((None, 8, 12)),
        routed_scaling_factor=draw.choice((1.0, 2.5)),
        norm_topk_prob=draw.random() < 0.7,
    )
