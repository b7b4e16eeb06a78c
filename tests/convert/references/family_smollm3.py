"""SmolLM3."""

from cases import Draw, case, rope, sizes, window
from transformers import SmolLM3Config, SmolLM3ForCausalLM


@case("smollm3", SmolLM3ForCausalLM)
def smollm3(draw: Draw) -> SmolLM3Config:
    found = sizes(draw)
    layers = range(found["num_hidden_layers"])
    if draw.random() < 0.5:
        found["no_rope_layers"] = [draw.randint(0, 1) for _ in layers]
    else:
        found["no_rope_layer_interval"] = draw.choice((2, 3))
    if draw.random() < 0.5:
        found |= dict(use_sliding_window=True, sliding_window=window(draw))
    if draw.random() < 0.5 and "sliding_window" in found:
        kinds = ("full_attention", "sliding_attention")
        found["layer_types"] = [draw.choice(kinds) for _ in layers]
    return SmolLM3Config(
        **found,
        rope_parameters=rope(draw),
        attention_bias=draw.random() < 0.5,
        mlp_bias=draw.random() < 0.5,
    )
