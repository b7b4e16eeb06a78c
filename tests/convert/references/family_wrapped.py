"""Text models inside models that also see: Gemma 3, Llama 4, Mistral 3, Qwen3.5 and others."""

from cases import Draw, case
from family_gemma import gemma3
from family_gemma4 import gemma4, scalars
from family_lfm2 import lfm2
from family_llama import llama
from family_llama4 import llama4
from family_mistral import ministral3, mistral
from family_qwen3_next import qwen3_5_dense, qwen3_5_moe
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Llama4Config,
    Llama4ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
)

#: A vision tower as small as it goes.
VISION = dict(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    patch_size=4,
    image_size=8,
)
QWEN = dict(depth=1, hidden_size=8, intermediate_size=8, num_heads=2, patch_size=4)
OUTPUTS = dict(vision_output_dim=8, projector_input_dim=8, projector_output_dim=8)


def text(config, draw: Draw) -> tuple[dict, bool]:
    """The keys of a text model's config, and whether it is tied, which the wrapper decides."""
    found = config(draw).to_dict()
    return found, found["tie_word_embeddings"]


@case("wrapped_gemma3", Gemma3ForConditionalGeneration)
def wrapped_gemma3(draw: Draw) -> Gemma3Config:
    own, tied = text(gemma3, draw)
    return Gemma3Config(
        text_config=own, vision_config=VISION, mm_tokens_per_image=4, tie_word_embeddings=tied
    )


@case("wrapped_gemma4", Gemma4ForConditionalGeneration, scalars)
def wrapped_gemma4(draw: Draw) -> Gemma4Config:
    own, tied = text(gemma4, draw)
    own["pad_token_id"] = 0  # stands where images are
    vision = dict(VISION, head_dim=4, num_key_value_heads=2, position_embedding_size=4)
    return Gemma4Config(
        text_config=own, vision_config=vision, audio_config=None, tie_word_embeddings=tied
    )


@case("wrapped_llama4", Llama4ForConditionalGeneration)
def wrapped_llama4(draw: Draw) -> Llama4Config:
    own, tied = text(llama4, draw)
    return Llama4Config(text_config=own, vision_config=VISION | OUTPUTS, tie_word_embeddings=tied)


@case("wrapped_mistral3", Mistral3ForConditionalGeneration)
def wrapped_mistral3(draw: Draw) -> Mistral3Config:
    own, tied = text(mistral, draw)
    vision = dict(VISION, model_type="pixtral")
    return Mistral3Config(text_config=own, vision_config=vision, tie_word_embeddings=tied)


@case("wrapped_ministral3", Mistral3ForConditionalGeneration)
def wrapped_ministral3(draw: Draw) -> Mistral3Config:
    own, tied = text(ministral3, draw)
    vision = dict(VISION, model_type="pixtral")
    return Mistral3Config(text_config=own, vision_config=vision, tie_word_embeddings=tied)


@case("wrapped_qwen3_5", Qwen3_5ForConditionalGeneration)
def wrapped_qwen3_5(draw: Draw) -> Qwen3_5Config:
    own, tied = text(qwen3_5_dense, draw)
    vision = dict(QWEN, out_hidden_size=own["hidden_size"])
    return Qwen3_5Config(text_config=own, vision_config=vision, tie_word_embeddings=tied)


@case("wrapped_qwen3_5_moe", Qwen3_5MoeForConditionalGeneration)
def wrapped_qwen3_5_moe(draw: Draw) -> Qwen3_5MoeConfig:
    own, tied = text(qwen3_5_moe, draw)
    vision = dict(QWEN, out_hidden_size=own["hidden_size"])
    return Qwen3_5MoeConfig(text_config=own, vision_config=vision, tie_word_embeddings=tied)


@case("wrapped_llava", LlavaForConditionalGeneration)
def wrapped_llava(draw: Draw) -> LlavaConfig:
    own, tied = text(llama, draw)
    vision = dict(VISION, model_type="clip_vision_model")
    return LlavaConfig(text_config=own, vision_config=vision, tie_word_embeddings=tied)


@case("wrapped_lfm2", Lfm2VlForConditionalGeneration)
def wrapped_lfm2(draw: Draw) -> Lfm2VlConfig:
    own, tied = text(lfm2, draw)
    vision = dict(VISION, model_type="siglip2_vision_model")
    return Lfm2VlConfig(
        text_config=own, vision_config=vision, projector_hidden_size=8, tie_word_embeddings=tied
    )
