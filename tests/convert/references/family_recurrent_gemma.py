"""RecurrentGemma."""

from cases import Draw, case, window
from family_bamba import even_heads
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM


@case("recurrent_gemma", RecurrentGemmaForCausalLM)
def recurrent_gemma(draw: Draw) -> RecurrentGemmaConfig:
    found = even_heads(draw)
    heads = found["num_attention_heads"]
    found["tie_word_embeddings"] = True
    return RecurrentGemmaConfig(
        **found,
        lru_width=draw.choice((None, heads * 6, heads * 8)),
        block_types=draw.choice(
            (["recurrent", "recurrent", "attention"], ["attention", "recurrent"])
        ),
        attention_window_size=window(draw),
        conv1d_width=draw.choice((2, 3, 4)),
        logits_soft_cap=draw.choice((3.0, 30.0)),
        attention_bias=draw.random() < 0.5,
        rope_parameters={"rope_type": "default", "rope_theta": draw.choice((100.0, 10_000.0))},
    )
