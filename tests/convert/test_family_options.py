"""Options of config.json files that the fixtures do not draw: read as the class reads them, or refused."""

import json
import pathlib

import pytest

from hybridlm.convert.exporting import fit
from hybridlm.convert.importing import read_settings
from hybridlm.errors import ConvertError

NO_ROPE = {"rope_theta": None, "rope_type": "default"}
FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def config(fixture, **keys):
    """The config.json of a fixture with other keys."""
    return json.loads((FIXTURES / fixture / "config.json").read_text()) | keys


@pytest.mark.parametrize("one", [False, True])
def test_gemma_4s_readers_of_shared_keys_have_no_settings_of_values(one):
    """Those are of the layer that makes the values; an export reads back as the same model."""
    family, model, _ = read_settings(config("gemma4_shared", attention_k_eq_v=one), "here")
    mixers = [mixer for _, mixer in model.layer_mixers()]
    readers = [x for x in mixers if x.kv_in]
    makers = [x for x in mixers if not x.kv_in]
    assert {(x.values, x.v_norm, x.value_scale) for x in readers} == {("own", False, 1.0)}
    assert {x.v_norm for x in makers} == {True}
    assert {x.values for x in makers if x.window is None} == {"keys" if one else "own"}
    keys = fit(model, preferred=family.architecture).keys
    assert keys["attention_k_eq_v"] is one
    assert read_settings(keys, "here")[1] == model


HALF = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
WINDOWED = {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 9}


@pytest.mark.parametrize("fixture", ["falcon_h1", "granite_hybrid", "lfm2", "minimax"])
def test_classes_that_rotate_whole_heads_refuse_a_part(fixture):
    """Those of transformers do not read `partial_rotary_factor` without scaling."""
    with pytest.raises(ConvertError, match="partial_rotary_factor is 0.5: the class rotates whole"):
        read_settings(config(fixture, rope_parameters=HALF), "here")


@pytest.mark.parametrize(
    "fixture, keys, said",
    [
        ("qwen2", WINDOWED, "layer_types has 'sliding_attention', and no window is on"),
        ("qwen3", WINDOWED, "layer_types has 'sliding_attention', and no window is on"),
        ("smollm3", WINDOWED, "layer_types has 'sliding_attention', and no window is on"),
        ("ministral", {"sliding_window": None}, "sliding_window is null"),
        ("deepseek_v3", {"n_shared_experts": 0}, "n_shared_experts is 0: "),
        (
            "qwen3_5_moe",
            {"shared_expert_intermediate_size": 0},
            "shared_expert_intermediate_size is 0: ",
        ),
        ("granite_hybrid", {"logits_scaling": 0}, "logits_scaling is 0: "),
        ("falcon_h1", {"num_attention_heads": 96}, "num_attention_heads is 96: a head of"),
        ("llama", {"head_dim": 0}, "head_dim is 0: a head of hidden_size"),
        ("gemma3", {"query_pre_attn_scalar": 2.5}, "query_pre_attn_scalar must be a whole number"),
        (
            "ministral3",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
            "rope_parameters.llama_4_scaling_beta is missing",
        ),
    ],
)
def test_an_option_that_would_do_nothing_or_nonsense_is_named(fixture, keys, said):
    depth = config(fixture)["num_hidden_layers"]
    if "layer_types" in keys:
        keys = keys | {"layer_types": keys["layer_types"][:depth]}
    with pytest.raises(ConvertError) as error:
        read_settings(config(fixture, **keys), "here")
    assert said in str(error.value) and "\n" not in str(error.value)


LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {
    "rope_type": "yarn",
    "factor": 2.0,
    "rope_theta": 50.0,
    "original_max_position_embeddings": 16,
}


def rope(**keys):
    """RoPE of a Llama with these keys."""
    keys = {"rope_parameters": None, **keys}
    return read_settings(config("llama", **keys), "here")[1].mixers["full"].rope


def test_rope_scaling_counts_before_rope_parameters():
    default = {"rope_type": "default", "rope_theta": 9.0}
    found = rope(rope_parameters=default, rope_scaling=LINEAR, rope_theta=70.0)
    assert (found.linear.factor, found.theta) == (2.0, 70.0)
    assert rope(rope_parameters=default, rope_scaling=None).theta == 9.0
    assert rope(rope_parameters=default, rope_scaling={}).theta == 9.0


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_the_length_beside_ropes_object_counts_before_the_one_in_it(kind):
    """As in transformers, which gives priority to the config's own key."""
    more = {"llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0}}.get(kind, {})
    scaled = {**YARN, "rope_type": kind, **more}
    assert getattr(rope(rope_parameters=scaled), kind).length == 16
    beside = rope(rope_parameters=scaled, original_max_position_embeddings=8)
    assert getattr(beside, kind).length == 8


def test_a_null_inner_width_of_falcon_h1_follows_from_the_expansion():
    """Absent it is 1024, null it is mamba_expand times the width."""
    keys = config("falcon_h1", mamba_d_ssm=None, mamba_d_head="auto", mamba_expand=2)
    mixer = read_settings(keys, "here")[1].layer_mixers()[0][1]
    (ssm,) = [x for x in mixer.branches.values() if x.kind_name == "mamba2"]
    assert ssm.heads * ssm.head_dim == 2 * keys["hidden_size"]


@pytest.mark.parametrize("kind", ["default", "linear", "yarn"])
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_ministral_3s_factor_on_queries_is_read_and_written(kind, beta):
    scaled = {**YARN, "rope_type": kind, "llama_4_scaling_beta": beta, "mscale_all_dim": 1.0}
    if kind == "default":
        del scaled["factor"]
    if kind != "yarn":
        del scaled["mscale_all_dim"]
    family, model, _ = read_settings(config("ministral3", rope_parameters=scaled), "here")
    temperature = model.layer_mixers()[0][1].temperature
    if beta == 0:
        assert temperature is None
    else:
        assert (temperature.scale, temperature.strength, temperature.steps) == (
            16,
            beta,
            "from_zero",
        )
    keys = fit(model, family.architecture).keys
    assert keys["rope_parameters"]["llama_4_scaling_beta"] == beta
    assert read_settings(keys, "here")[1] == model


@pytest.mark.parametrize(
    "fixture, key, default",
    [
        ("glm_moe_dsa", "qk_nope_head_dim", 192),
        ("glm_moe_dsa", "v_head_dim", 256),
        ("qwen2", "num_key_value_heads", 32),
        ("qwen3", "num_key_value_heads", 32),
        ("falcon_h1", "num_key_value_heads", 8),
        ("ministral3", "rms_norm_eps", 1e-5),
        ("ministral", "sliding_window", 4096),
    ],
)
def test_an_absent_key_has_the_default_of_its_class(fixture, key, default):
    more = {"num_attention_heads": 96, "head_dim": 8} if key == "num_key_value_heads" else {}
    given = config(fixture, **more, **{key: default})
    absent = {name: value for name, value in given.items() if name != key}
    assert read_settings(absent, "here")[1] == read_settings(given, "here")[1]


@pytest.mark.parametrize("none", [dict(rope_parameters=NO_ROPE), dict(rope_theta=None)])
def test_only_a_null_base_leaves_olmo_hybrid_without_rope(none):
    """transformers 5.23 fills in RoPE where the config says nothing; an export must say that there is none."""

    def ropes(**keys):
        found = config("olmo_hybrid", **keys)
        found = {k: v for k, v in found.items() if v != "absent"}
        model = read_settings(found, "here")[1]
        return model, {m.rope for _, m in model.layer_mixers() if hasattr(m, "rope")}

    without, found = ropes(**{"rope_parameters": "absent"} | none)
    assert found == {None}
    assert fit(without, "OlmoHybridForCausalLM").keys["rope_parameters"] == NO_ROPE
    for silent in ("absent", None, {}, {"rope_type": "default"}):
        assert [x.theta for x in ropes(rope_parameters=silent)[1]] == [10_000.0]
