"""Mamba, Falcon-Mamba and Jamba: published sizes, layers that repeat, and what is refused."""

import pytest

from hybridlm.convert.exporting import fit
from hybridlm.convert.importing import read_settings
from hybridlm.errors import ConvertError
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig
from hybridlm.settings.reader import read_dataclass

MAMBA = dict(
    architectures=["MambaForCausalLM"],
    model_type="mamba",
    hidden_size=2560,
    intermediate_size=5120,
    num_hidden_layers=64,
    time_step_rank=160,
    vocab_size=50280,
    d_model=2560,
    n_layer=64,
    ssm_cfg={},
    rms_norm=True,
)
FALCON = dict(
    architectures=["FalconMambaForCausalLM"],
    model_type="falcon_mamba",
    hidden_size=4096,
    expand=16,  # as published; the next line counts
    intermediate_size=8192,
    num_hidden_layers=64,
    time_step_rank=256,
    vocab_size=65024,
    tie_word_embeddings=False,
)
JAMBA = dict(
    architectures=["JambaForCausalLM"],
    model_type="jamba",
    hidden_size=4096,
    num_attention_heads=32,
    num_hidden_layers=32,
    vocab_size=65536,
    mamba_inner_layernorms=True,
    sliding_window=None,
    n_ctx=262144,
)


def settings(keys, **changes):
    return read_settings({**keys, **changes}, "config.json")[1]


@pytest.mark.parametrize(
    "keys, parameters",
    [(MAMBA, 2_768_345_600), (FALCON, 7_272_665_088), (JAMBA, 51_570_323_328)],
    ids=["mamba", "falcon_mamba", "jamba"],
)
def test_parameters_are_as_many_as_published(keys, parameters):
    assert Model.of(settings(keys)).count() == parameters


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(hidden_act="gelu"), "hidden_act is 'gelu': hybridlm has Mamba with silu alone"),
        (dict(mamba_inner_layernorms=False), "mamba_inner_layernorms is false"),
        (dict(attn_layer_period=4, attn_layer_offset=4), "attn_layer_offset is 4: it must be less"),
        (dict(mamba_dt_rank=1.5), "mamba_dt_rank must be a whole number"),
    ],
)
def test_refused(change, sentence):
    with pytest.raises(ConvertError, match=sentence):
        settings(JAMBA, **change)


def jamba_like(pattern, **more):
    """A model whose layers Jamba has, but perhaps not in this order."""
    return read_dataclass(
        ModelConfig,
        dict(
            width=32,
            depth=len(pattern.split()),
            vocab_size=40,
            pattern=pattern,
            tie_embeddings=False,
            mixers=dict(
                s=dict(kind="mamba1", norm="rmsnorm", state_dim=4),
                full=dict(kind="attention", heads=4, rope=None),
            ),
            mlp=None,
            feedforwards=dict(
                d=dict(kind="swiglu", hidden=24), e=dict(kind="moe", experts=3, top_k=2, hidden=24)
            ),
            **more,
        ),
        "model",
    )


@pytest.mark.parametrize(
    "pattern, periods",
    [
        ("s+d s+e full+d s+e s+d full+e", (3, 2, 2, 1)),
        ("s+e s+e", (3, 2, 1, 0)),  # no layer attends: the period is longer than the model
        ("full+e s+d s+e", (3, 0, 2, 0)),
    ],
)
def test_layers_of_a_period_are_found_again(pattern, periods):
    keys = fit(jamba_like(pattern), "JambaForCausalLM").keys
    names = [f"{x}_layer_{y}" for x in ("attn", "expert") for y in ("period", "offset")]
    assert tuple(keys[n] for n in names) == periods


def test_layers_without_a_period_have_no_class():
    with pytest.raises(ConvertError, match=r"attn_layer_period .* cannot choose the layers \[0, 3"):
        fit(jamba_like("full+d s+e s+d full+e full+d s+e"), "JambaForCausalLM")
