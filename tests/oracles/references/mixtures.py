"""Mixtures of experts: the feed-forward blocks of transformers' models, tiny, with random weights."""

import torch
from layers import config, draw_weights, model_module
from recording import Case, Draw, Tensors, case

BATCH, TIME, WIDTH = 2, 12, 16
EXPERTS, TOP_K, HIDDEN, SHARED = 8, 3, 6, 10


def mixture(draw: Draw, model: str, block: str, settings: str, **chosen) -> Case:
    """A case of the class `block`, whose configuration class is `settings`.

    Buffers, which no gradient trains, are the biases of the choice of experts; they are in the case's
    settings.
    """
    made = config(model, settings, hidden_size=WIDTH, num_attention_heads=2, **chosen)
    made._experts_implementation = "eager"
    module = getattr(model_module(model), block)(made).eval()
    fixed = {n: p for n, p in module.named_parameters() if not p.requires_grad}
    fixed |= dict(module.named_buffers())
    special = dict(
        gate_up_proj_bias=lambda s: draw.normal(*s), down_proj_bias=lambda s: draw.normal(*s)
    )
    weights = {n: w for n, w in draw_weights_of(module, draw, special).items() if n not in fixed}
    biases = {name: draw.normal(*value.shape, scale=0.2) for name, value in fixed.items()}

    def run(inputs: Tensors, weights: Tensors) -> Tensors:
        state = weights | {n: b.double() for n, b in biases.items()}
        y = torch.func.functional_call(module, state, (inputs["x"],))
        y = y[0] if isinstance(y, tuple) else y
        return dict(y=y.reshape(inputs["x"].shape))

    (bias,) = biases.values() or (None,)
    kept = {n: v for n, v in chosen.items() if isinstance(v, bool | int | float | str)}
    return Case(
        f"transformers 5.23.0, {block}",
        run,
        dict(x=draw.normal(BATCH, TIME, WIDTH)),
        weights,
        kept | dict(choice_bias=None if bias is None else bias.float().tolist()),
    )


def draw_weights_of(module, draw: Draw, special) -> Tensors:
    """`draw_weights`, with each expert's matrices drawn as a matrix of their own."""
    drawn = draw_weights(module, draw, {"expert_bias": lambda s: draw.normal(*s)} | special)
    for name, value in drawn.items():
        if value.ndim == 3:  # (experts, out, in) or (experts, in, out): about 1 in either
            drawn[name] = draw.normal(*value.shape, scale=value.shape[-1] ** -0.5)
    return drawn


SIZES = dict(num_experts_per_tok=TOP_K, moe_intermediate_size=HIDDEN)


@case
def moe_mixtral(draw: Draw) -> Case:
    sizes = dict(num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=HIDDEN)
    return mixture(draw, "mixtral", "MixtralSparseMoeBlock", "MixtralConfig", **sizes)


@case
def moe_qwen2(draw: Draw) -> Case:
    return mixture(
        draw,
        "qwen2_moe",
        "Qwen2MoeSparseMoeBlock",
        "Qwen2MoeConfig",
        num_experts=EXPERTS,
        shared_expert_intermediate_size=SHARED,
        norm_topk_prob=False,
        **SIZES,
    )


@case
def moe_qwen3(draw: Draw) -> Case:
    sizes = dict(num_experts=EXPERTS, norm_topk_prob=True, **SIZES)
    return mixture(draw, "qwen3_moe", "Qwen3MoeSparseMoeBlock", "Qwen3MoeConfig", **sizes)


@case
def moe_qwen3_next(draw: Draw) -> Case:
    return mixture(
        draw,
        "qwen3_next",
        "Qwen3NextSparseMoeBlock",
        "Qwen3NextConfig",
        num_experts=EXPERTS,
        shared_expert_intermediate_size=SHARED,
        norm_topk_prob=True,
        **SIZES,
    )


@case
def moe_gpt_oss(draw: Draw) -> Case:
    sizes = dict(num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=HIDDEN)
    # A low limit, so that most of what it clamps is clamped.
    return mixture(draw, "gpt_oss", "GptOssMLP", "GptOssConfig", swiglu_limit=0.8, **sizes)


@case
def moe_deepseek_v2(draw: Draw) -> Case:
    return mixture(
        draw,
        "deepseek_v2",
        "DeepseekV2Moe",
        "DeepseekV2Config",
        n_routed_experts=EXPERTS,
        n_shared_experts=2,
        n_group=4,
        topk_group=2,
        topk_method="group_limited_greedy",
        routed_scaling_factor=4.0,
        **SIZES,
    )


@case
def moe_deepseek_v3(draw: Draw) -> Case:
    return mixture(
        draw,
        "deepseek_v3",
        "DeepseekV3MoE",
        "DeepseekV3Config",
        n_routed_experts=EXPERTS,
        n_shared_experts=2,
        n_group=4,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        **SIZES,
    )


@case
def moe_llama4(draw: Draw) -> Case:
    sizes = dict(num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=HIDDEN)
    return mixture(draw, "llama4", "Llama4TextMoe", "Llama4TextConfig", **sizes)


def nemotron(draw: Draw, **chosen) -> Case:
    return mixture(
        draw,
        "nemotron_h",
        "NemotronHMoE",
        "NemotronHConfig",
        n_routed_experts=EXPERTS,
        moe_shared_expert_intermediate_size=SHARED,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        **SIZES,
        **chosen,
    )


@case
def moe_nemotron_h(draw: Draw) -> Case:
    return nemotron(draw)


@case
def moe_nemotron_h_latent(draw: Draw) -> Case:
    return nemotron(draw, moe_latent_size=7)


@case
def moe_granite(draw: Draw) -> Case:
    sizes = dict(num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=HIDDEN)
    return mixture(draw, "granitemoe", "GraniteMoeMoE", "GraniteMoeConfig", **sizes)


@case
def moe_jamba(draw: Draw) -> Case:
    sizes = dict(num_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=HIDDEN)
    return mixture(draw, "jamba", "JambaSparseMoeBlock", "JambaConfig", **sizes)


@case
def moe_lfm2(draw: Draw) -> Case:
    return mixture(
        draw,
        "lfm2_moe",
        "Lfm2MoeSparseMoeBlock",
        "Lfm2MoeConfig",
        num_experts=EXPERTS,
        use_expert_bias=True,
        norm_topk_prob=True,
        layer_types=["full_attention"] * 4,
        **SIZES,
    )


@case
def moe_afmoe(draw: Draw) -> Case:
    sizes = dict(num_experts=EXPERTS, num_shared_experts=2, route_scale=2.4, **SIZES)
    return mixture(draw, "afmoe", "AfmoeSparseMoeBlock", "AfmoeConfig", **sizes)


@case
def moe_minimax_m2(draw: Draw) -> Case:
    sizes = dict(num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, intermediate_size=HIDDEN)
    return mixture(draw, "minimax_m2", "MiniMaxM2SparseMoeBlock", "MiniMaxM2Config", **sizes)
