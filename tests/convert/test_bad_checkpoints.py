"""Each kind of bad checkpoint, and each model that no class holds, is one sentence."""

import json
import pathlib
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from hybridlm.convert import export, open_checkpoint
from hybridlm.convert.exporting import fit
from hybridlm.convert.registry import FAMILIES
from hybridlm.errors import ConvertError
from hybridlm.models.settings import ModelConfig
from hybridlm.settings.reader import read_dataclass

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
Q = "model.layers.0.self_attn.q_proj.weight"
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}


@pytest.fixture
def folder(tmp_path):
    """A copy of the Llama fixture."""
    return pathlib.Path(shutil.copytree(FIXTURES / "llama", tmp_path / "llama"))


def with_keys(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def with_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refusal(folder) -> str:
    with pytest.raises(ConvertError) as error:
        open_checkpoint(folder)
    message = str(error.value)
    assert "\n" not in message and str(folder) in message
    return message


@pytest.mark.parametrize(
    "keys, said",
    {
        "unknown architecture": (
            {"architectures": ["XForCausalLM"]},
            "hybridlm has no XForCausalLM; it has ",
        ),
        "no architecture": ({"architectures": [], "model_type": "x"}, "names no architecture"),
        "quantised": ({"quantization_config": {"quant_method": "awq"}}, "is quantised (awq)"),
        "gpt-oss as published": (
            {
                "architectures": ["GptOssForCausalLM"],
                "quantization_config": {"quant_method": "mxfp4"},
            },
            "is quantised (mxfp4)",
        ),
        "unknown option": ({"frobnicate": 3}, "what these options change: frobnicate = 3"),
        "activation": ({"hidden_act": "tanh"}, "hidden_act is 'tanh': hybridlm has silu"),
        "rope": (
            {"rope_parameters": {"rope_type": "spiral", "factor": 2.0}},
            "rope_parameters.rope_type is 'spiral': hybridlm has",
        ),
        "rope by length": (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}},
            "rope_parameters.rope_type is 'longrope': its frequencies follow from the length",
        ),
        "dynamic rope": (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "rope_parameters.rope_type is 'dynamic': its frequencies follow from the length",
        ),
        "key in rope": (
            {"rope_parameters": {"rope_type": "default", "wave": 1}},
            "rope_parameters.wave = 1",
        ),
        "partial rotation": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        "missing key": ({"hidden_size": None}, "hidden_size is missing"),
        "text for number": ({"hidden_size": "8"}, "hidden_size must be a whole number, not '8'"),
        "number for flag": ({"mlp_bias": 1}, "mlp_bias must be true or false, not 1"),
        "odd heads": ({"num_key_value_heads": 7}, "kv_heads is 7 and does not divide heads"),
    }.values(),
)
def test_options(folder, keys, said):
    with_keys(folder, **keys)
    assert said in refusal(folder)


@pytest.mark.parametrize(
    "family, keys, said",
    [
        (
            "gemma4",
            {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 5},
            "vocab_size_per_layer_input is 5, less than vocab_size",
        ),
        ("gemma4", {"num_kv_shared_layers": 3}, "has no layer below with its own"),
        ("gemma4", {"enable_moe_block": True}, "num_experts is missing"),
        (
            "glm_moe_dsa",
            {"indexer_types": ["shared"] * 4},
            "indexer_types must be 4 entries, of which the first is full",
        ),
        ("glm_moe_dsa", {"index_topk_pattern": 3}, "index_topk_pattern must be letters F and S"),
        (
            "llama4",
            {"interleave_moe_layer_step": 0},
            "interleave_moe_layer_step must be at least 1",
        ),
        ("phi3", {"attention_bias": True}, "attention_bias is true: the class has no biases"),
        (
            "phi3",
            {"rope_parameters": LINEAR},
            "rope_parameters has rope_type 'linear'",
        ),
        (
            "glm_moe_dsa",
            {"indexer_rope_interleave": False},
            "the class's indexer rotates neighbours",
        ),
        ("deepseek_v32", {"indexer_rope_interleave": True}, "the class's indexer rotates halves"),
        ("qwen3_moe", {"shared_expert_intermediate_size": 8}, "the class has no shared expert"),
        ("qwen3_moe", {"use_qk_norm": False}, "the class has norms of q and k"),
        ("qwen3_moe", {"qkv_bias": True}, "the class reads attention_bias"),
        ("llama", {"rope_interleaved": True}, "the class rotates halves"),
        ("qwen2", {"use_mrope": True}, "use_mrope is true"),
        ("qwen3_next", {"use_sliding_window": True}, "the class has no windows"),
        ("granite_hybrid", {"normalization_function": "layernorm"}, "hybridlm has only 'rmsnorm'"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
        ("cohere2", {"sliding_window": None}, "sliding_window is null"),
        ("olmo3", {"layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ("qwen3", {"layer_types": ["linear_attention"] * 9}, "layer_types has "),
    ],
)
def test_options_of_families(tmp_path, family, keys, said):
    folder = pathlib.Path(shutil.copytree(FIXTURES / family, tmp_path / family))
    with_keys(folder, **keys)
    assert said in refusal(folder)


def test_a_config_that_is_no_object(folder):
    (folder / "config.json").write_text('["model_type"]')
    with pytest.raises(ConvertError, match="is a JSON list, not an object"):
        open_checkpoint(folder)
    (folder / "config.json").write_text("{")
    assert "malformed JSON" in refusal(folder)


def test_tensors_are_listed(folder):
    def change(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.extra.weight"] = tensors[Q]
        tensors[Q] = tensors[Q][:-2]

    with_tensors(folder, change)
    said = refusal(folder)
    assert "missing: model.norm.weight;" in said
    assert "not in this architecture: model.layers.0.extra.weight;" in said
    assert f"of another shape: {Q} (" in said


def test_a_head_that_is_not_the_tied_embedding(folder):
    embedding = "model.embed_tokens.weight"
    with_keys(folder, tie_word_embeddings=True)
    with_tensors(folder, lambda t: t.update({"lm_head.weight": t[embedding] * 2}))
    assert "tie_word_embeddings is true, and lm_head.weight is not" in refusal(folder)
    with_tensors(folder, lambda t: t.update({"lm_head.weight": t[embedding]}))
    assert open_checkpoint(folder).model.config.tie_embeddings


def test_a_missing_shard(folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": {Q: "a.safetensors", "x": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "1 of the 2 files" in (said := refusal(folder)) and "b.safetensors is missing" in said


@pytest.mark.parametrize("kept", [0, 5, 200, 0.5, 0.999])
def test_a_truncated_file(folder, kept):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    assert "copy it again" in refusal(folder)


def test_a_damaged_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes((16).to_bytes(8, "little") + b'{"a": {"dtype":1' + bytes(100))
    assert "its header cannot be read" in refusal(folder)


def test_a_quantised_dtype(folder):
    with_tensors(folder, lambda t: t.update({Q: t[Q].astype("int8")}))
    assert f"{Q} is I8" in refusal(folder)


def test_pickles_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "has only pickles (pytorch_model.bin), which run code" in refusal(folder)
    (folder / "pytorch_model.bin").unlink()
    assert "no safetensors file" in refusal(folder)


def test_no_checkpoint_at_all(refusal, tmp_path):
    said = refusal("convert", "import", "--from", tmp_path, "--out", tmp_path / "out")
    assert "it has no config.json" in said


# --- export -------------------------------------------------------------------------------------

ATTENTION = dict(kind="attention", heads=2)


def model(**settings) -> ModelConfig:
    default = dict(
        width=8, depth=4, vocab_size=16, mixers={"a": ATTENTION}, pattern="a", mlp={"hidden": 8}
    )
    return read_dataclass(ModelConfig, default | settings, "model")


def test_an_own_hybrid_is_exported_into_a_class_that_holds_its_layers():
    swa = ATTENTION | {"window": 3}
    own = model(mixers={"swa": swa, "nope": ATTENTION | {"rope": None}}, pattern="swa*3 nope")
    found = fit(own)
    assert found.family.architecture == "SmolLM3ForCausalLM"
    assert found.keys["no_rope_layers"] == [1, 1, 1, 0]
    assert found.keys["layer_types"] == ["sliding_attention"] * 3 + ["full_attention"]
    rope = {"theta": 5e3}
    own = model(
        mixers={"swa": swa, "full": ATTENTION | {"rope": rope, "qk_norm": "whole"}},
        pattern="swa full",
        block="postnorm",
    )
    with pytest.raises(ConvertError, match="layer 0 has mixer.qk_norm False, where Olmo3"):
        fit(own)
    swa["qk_norm"] = "whole"
    own = model(
        mixers={"swa": swa, "full": own.mixers["full"]}, pattern="swa full", block="postnorm"
    )
    assert fit(own).family.architecture == "Olmo3ForCausalLM"


@pytest.mark.parametrize(
    "settings, said",
    {
        "a mixer": (
            dict(mixers={"a": ATTENTION, "gla": dict(kind="gla", heads=2)}, pattern="a*3 gla"),
            "layer 3 is ",
        ),
        "two windows": (
            dict(
                mixers={"a": ATTENTION | {"window": 3}, "b": ATTENTION | {"window": 5}},
                pattern="a b",
            ),
            "layer 1 has ",
        ),
        "a setting": (
            dict(mixers={"a": ATTENTION | {"sinks": True}}),
            "layer 0 has mixer.sinks True, where ",
        ),
        "a feed-forward": (
            dict(mlp={"kind": "plain", "hidden": 8}),
            "layer 0 has the feed-forward",
        ),
    }.values(),
)
def test_a_model_that_no_class_holds_names_the_layer(settings, said):
    with pytest.raises(ConvertError) as error:
        fit(model(**settings))
    assert "no class of transformers" in str(error.value) and said in str(error.value)


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(embedding_scale=2.0), "embedding_scale 2.0, where LlamaForCausalLM has 1.0"),
        (dict(logit_soft_cap=3.0), "logit_soft_cap 3.0, where LlamaForCausalLM has None"),
        (dict(block="parallel"), "its layers are parallel, not prenorm"),
        (dict(norm="layernorm"), "norm 'layernorm', where LlamaForCausalLM has 'rmsnorm'"),
    ],
)
def test_a_setting_of_the_model_that_a_class_does_not_hold(settings, said):
    with pytest.raises(ConvertError, match="LlamaForCausalLM cannot hold this model") as error:
        fit(model(**settings), "LlamaForCausalLM")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "scaled",
    [
        {"linear": {"factor": 2.0}},
        {"llama3": {"factor": 8.0, "length": 64}},
        {"kept": {"fraction": 0.5}},
        {"yarn": {"factor": 2.0, "length": 64}},
    ],
    ids=lambda scaled: next(iter(scaled)),
)
def test_phi3_holds_no_scaled_rope(scaled):
    """Its class in transformers refuses each such type, and takes yarn for LongRoPE."""
    own = model(mixers={"a": ATTENTION | {"rope": scaled}})
    with pytest.raises(ConvertError, match="Phi3ForCausalLM cannot hold this model"):
        fit(own, "Phi3ForCausalLM")
    plain = model(mixers={"a": ATTENTION | {"rope": {"fraction": 0.5}}})
    assert fit(plain, "Phi3ForCausalLM").keys["rope_parameters"]["rope_type"] == "default"


def test_what_training_alone_reads_does_not_hinder_an_export():
    assert fit(model(z_loss=1e-4, init_std=0.1)).family.architecture == FAMILIES[0].architecture


def test_a_folder_that_is_not_empty(folder, tmp_path):
    opened = open_checkpoint(folder)
    with pytest.raises(ConvertError, match="is not empty"):
        export(opened.model, opened.params(), folder)
