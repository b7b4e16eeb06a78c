"""MiniMax-01."""

from cases import Draw, case, rope, sizes, window
from transformers import MiniMaxConfig, MiniMaxForCausalLM


@case("minimax", MiniMaxForCausalLM, exact=True)  # its buffers would be rounded, too
def minimax(draw: Draw) -> MiniMaxConfig:
    found = sizes(draw, layers=(3, 4))
    depth = found["num_hidden_layers"]
    if draw.random() < 0.7:
        types = ["linear_attention", "full_attention"]
        types += [draw.choice(("linear_attention", "full_attention")) for _ in range(depth - 2)]
        draw.shuffle(types)
        found["layer_types"] = types
    factors = {
        f"{kind}_{side}_factor": draw.choice((1.0, 0.7, 1.5, 3.5))
        for kind in ("full_attn", "linear_attn", "mlp")
        for side in ("alpha", "beta")
    }
    number = draw.randint(2, 4)
    found["intermediate_size"] = draw.randint(6, 14)
    return MiniMaxConfig(
        **found,
        **factors,
        rope_parameters=rope(draw),
        sliding_window=window(draw) if draw.random() < 0.3 else None,
        block_size=draw.choice((4, 7, 16)),
        num_local_experts=number,
        num_experts_per_tok=draw.randint(1, min(2, number)),
    )
