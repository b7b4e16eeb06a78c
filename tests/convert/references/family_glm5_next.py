"""GLM-5.3-Flash, whose text model is only a part of a vision-language class."""

from cases import Draw, case
from family_deepseek import draw_biases, latent
from transformers import Glm5NextConfig, Glm5NextForConditionalGeneration

#: A vision tower as small as it goes.
VISION = dict(
    depth=1,
    hidden_size=8,
    intermediate_size=8,
    num_heads=2,
    patch_size=4,
    image_size=8,
    projection_intermediate_size=8,
)


@case("wrapped_glm5_next", Glm5NextForConditionalGeneration, draw_biases, exact=True)
def glm5_next(draw: Draw) -> Glm5NextConfig:
    found = latent(draw)
    depth = found["num_hidden_layers"] = draw.randint(3, 4)
    for key in ("rope_parameters", "num_key_value_heads"):
        found.pop(key, None)
    kinds = ["linear_attention", "indexed_attention"]
    types = kinds + [draw.choice(kinds) for _ in range(depth - 2)]
    draw.shuffle(types)
    # A layer may use the indexer of the layer right below.
    modes = ["full"] * depth
    for i in range(1, depth):
        below = types[i - 1] == types[i] == "indexed_attention" and modes[i - 1] == "full"
        if below and draw.random() < 0.6:
            modes[i] = "shared"
    pool = draw.choice((2, 3, 4))
    tied = found["tie_word_embeddings"]
    found |= dict(
        num_key_value_heads=found["num_attention_heads"],
        q_lora_rank=draw.choice((6, 8)),
        qk_rope_head_dim=0,
        layer_types=types,
        indexer_types=modes,
        mlp_layer_types=[draw.choice(("dense", "sparse")) for _ in range(depth)],
        index_n_heads=draw.choice((12, 16)),
        index_head_dim=draw.choice((8, 10)),
        index_topk=pool * draw.randint(1, 4),
        index_kpool=pool,
        index_kpool_always_select_tail=draw.random() < 0.7,
        swiglu_limit=draw.choice((0.7, 2.0, 10.0)),
        linear_num_heads=draw.choice((1, 2, 3)),
        linear_head_dim=draw.choice((4, 6, 8)),
        linear_conv_kernel_dim=draw.choice((2, 3, 4)),
        linear_lower_bound=draw.choice((None, -5.0, -2.0)),
        hc_mult=draw.choice((2, 3, 4)),
        hc_sinkhorn_iters=draw.choice((1, 3, 20)),
        hc_eps=draw.choice((1e-6, 1e-3)),
    )
    found["n_routed_experts"] = found.pop("num_local_experts")
    vision = VISION | dict(out_hidden_size=found["hidden_size"])
    return Glm5NextConfig(text_config=found, vision_config=vision, tie_word_embeddings=tied)
