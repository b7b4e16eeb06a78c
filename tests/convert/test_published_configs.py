"""The keys that published config.json files have are read, and give models of the published sizes."""

import json
import math
import pathlib

import pytest

from hybridlm import gallery
from hybridlm.convert.importing import read_settings
from hybridlm.convert.table import Table
from hybridlm.models.params import Model

ROOT = pathlib.Path(__file__).parents[2]
#: By fixture, keys of published files with the value that the class has whatever they say.
NEUTRAL = {
    "bamba": {"attn_rotary_emb": 64, "num_logits_to_keep": 1},
    "deepseek_v32": {"indexer_rope_interleave": False, "rope_interleave": True, "ep_size": 1},
    "glm_moe_dsa": {
        "indexer_rope_interleave": True,
        "rope_interleave": True,
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": 1,
    },
    "granite_hybrid": {"init_method": "mup", "normalization_function": "rmsnorm"},
    "llama": {"rope_interleaved": False, "is_llama_config": True, "pretraining_tp": 1},
    "llama4": {"for_llm_compressor": False, "attn_temperature_tuning": 4},
    "mistral": {"attention_bias": False, "rope_scaling": None},
    "nemotron_h": {"norm_eps": 1e-5, "partial_rotary_factor": 1.0, "rope_theta": 10000},
    "phi3": {"attention_bias": False, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "qwen2": {"use_mrope": False, "rope_scaling": None},
    "qwen3_moe": {
        "shared_expert_intermediate_size": 0,
        "use_qk_norm": True,
        "qkv_bias": False,
        "max_window_layers": 28,
    },
    "qwen3_next": {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 48},
    "smollm3": {"max_window_layers": 28, "pretraining_tp": 2},
}
GPT_OSS_20B = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}
MIMO_V2_FLASH = {
    "architectures": ["MiMoV2FlashForCausalLM"],
    "add_full_attention_sink_bias": False,
    "add_swa_attention_sink_bias": True,
    "attention_value_scale": 0.707,
    "head_dim": 192,
    "hidden_size": 4096,
    "hybrid_layer_pattern": [int(i > 0 and (i + 1) % 6 > 0) for i in range(48)],
    "intermediate_size": 16384,
    "layernorm_epsilon": 1e-5,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": [0] + [1] * 47,
    "n_routed_experts": 256,
    "n_shared_experts": None,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "partial_rotary_factor": 0.334,
    "rope_theta": 5000000,
    "routed_scaling_factor": None,
    "scoring_func": "sigmoid",
    "sliding_window": 128,
    "sliding_window_size": 128,
    "swa_num_key_value_heads": 8,
    "swa_rope_theta": 10000,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 152576,
}


@pytest.mark.parametrize(
    "keys, billions", [(GPT_OSS_20B, 20.9), (MIMO_V2_FLASH, 309)], ids=["gpt-oss-20b", "mimo"]
)
def test_the_tensors_of_a_published_model_have_its_parameters(keys, billions):
    family, settings, _ = read_settings(keys, "config.json")
    shapes = Table.of(Model.of(settings), family.rules(settings)).shapes.values()
    entries = sum(math.prod(shape) for shape in shapes)
    assert entries / 1e9 == pytest.approx(billions, rel=2e-3)


def test_mimos_windows_are_its_original_codes():
    """`sliding_window_size` counts the tokens before a query, and RoPE has a base by type."""
    _, settings, _ = read_settings(MIMO_V2_FLASH, "config.json")
    full, windowed = (settings.mixers[name] for name in ("full", "swa"))
    assert (windowed.window, windowed.kv_heads, windowed.sinks) == (129, 8, True)
    assert (full.window, full.kv_heads, full.sinks) == (None, 4, False)
    assert (windowed.rope.theta, full.rope.theta) == (1e4, 5e6)
    assert {x.rope.rotated(192) for x in (full, windowed)} == {64}


@pytest.mark.parametrize("name", NEUTRAL)
def test_keys_that_a_class_does_not_read_change_nothing(name):
    path = ROOT / "tests" / "convert" / "fixtures" / name / "config.json"
    plain = json.loads(path.read_text())
    expected, found = (
        read_settings(keys, "config.json")[1] for keys in (plain, plain | NEUTRAL[name])
    )
    assert found == expected


@pytest.mark.parametrize("tuning, tuned", [(4, True), (1, True), (0, False), (False, False)])
def test_llama4s_temperature_may_be_a_number(tuning, tuned):
    path = ROOT / "tests" / "convert" / "fixtures" / "llama4" / "config.json"
    keys = json.loads(path.read_text()) | {"attn_temperature_tuning": tuning}
    _, settings, _ = read_settings(keys, "config.json")
    without = [x for _, x in settings.layer_mixers() if x.rope is None]
    assert without and {x.temperature is not None for x in without} == {tuned}


def test_llama4_scouts_rope_has_no_ramp():
    rope = {
        "factor": 16.0,
        "high_freq_factor": 1.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    path = ROOT / "tests" / "convert" / "fixtures" / "llama4" / "config.json"
    keys = json.loads(path.read_text()) | {"rope_scaling": rope, "rope_theta": 500000.0}
    del keys["rope_parameters"]
    _, settings, _ = read_settings(keys, "config.json")
    found = {x.rope.llama3 for _, x in settings.layer_mixers() if x.rope is not None}
    assert [(x.factor, x.length, x.low, x.high) for x in found] == [(16.0, 8192, 1.0, 1.0)]


@pytest.mark.parametrize(
    "name, mixer",
    [
        ("falcon_mamba_7b", "mamba"),
        ("glm_5", "dsa"),
        ("hy4_preview", "own"),
        ("kimi_k3", "mla"),
        ("kimi_linear_48b_a3b", "mla"),
    ],
)
def test_norms_within_a_mixer_have_the_epsilon_of_their_class(name, mixer):
    """Not that of the model: transformers gives norms of latents, and of Falcon Mamba, 1e-6."""
    config = gallery.load(name, ROOT / "configs" / "gallery").config
    assert (config.norm_eps, config.mixers[mixer].norm_eps) == (1e-5, 1e-6)
