"""Phi-3 and Phi-4."""

from cases import Draw, case, rope, sizes, window
from transformers import Phi3Config, Phi3ForCausalLM


@case("phi3", Phi3ForCausalLM)
def phi3(draw: Draw) -> Phi3Config:
    found = sizes(draw, head_dim=False)
    if draw.random() < 0.5:
        found["head_dim"] = draw.choice((8, 12))
    size = found.get("head_dim", found["hidden_size"] // found["num_attention_heads"])
    shares = [n / size for n in range(2, size + 1, 2)]
    turned = rope(draw, scaled=()) | dict(partial_rotary_factor=draw.choice((1.0, *shares)))
    return Phi3Config(
        **found, rope_parameters=turned, sliding_window=draw.choice((None, window(draw)))
    )
