"""What papers and other code call a mixer, a feed-forward or a norm is answered with the right one."""

import itertools

import pytest

from hybridlm.errors import ConfigError
from hybridlm.models import feedforward, mixers
from hybridlm.models.norms import NORMS, OTHER_NORM_NAMES
from hybridlm.models.settings import ModelConfig
from hybridlm.settings.names import ABSENT
from hybridlm.settings.reader import read_dataclass

MEANT = {
    "gated_deltanet": "did you mean 'gdn'?",
    "Gated-DeltaNet": "did you mean 'gdn'?",
    "gated_delta_nett": "did you mean 'gdn'?",
    "delta_net": "did you mean 'deltanet'?",
    "kimi_delta_attention": "did you mean 'kda'?",
    "gated_deltanet_2": "did you mean 'gdn2'?",
    "deltaproduct": "did you mean 'delta_product'?",
    "rwkv": "did you mean 'rwkv7'?",
    "swa": "did you mean 'attention' with window=... (tokens)?",
    "gqa": "did you mean 'attention' with kv_heads=... (fewer than heads)?",
    "mqa": "did you mean 'attention' with kv_heads=1?",
    "mha": "did you mean 'attention'?",
    "retnet": "did you mean 'lightning' with decay='retnet'?",
    "mamba": "did you mean 'mamba1'?",
    "falcon-mamba": "did you mean 'mamba1' with norm='unscaled'?",
    "Mamba-2": "did you mean 'mamba2'?",
    "xlstm": "did you mean 'mlstm'?",
    "griffin": "did you mean 'rglru'?",
    "atention": "did you mean 'attention'?",
    **{name: "there is no such mixer; valid are: attention, " for name in mixers.ABSENT},
    "qqqq": "valid are: attention, ",
    "fastformer": "valid are: attention, ",  # "transformer" is another name of attention
}


@pytest.mark.parametrize("name, answer", MEANT.items())
def test_a_mixer_is_known_by_its_other_names(name, answer):
    with pytest.raises(ConfigError) as caught:
        mixers.read_mixer(dict(kind=name), "model.mixers.a")
    assert str(caught.value).startswith(f"model.mixers.a.kind is {name!r}: {answer}")


@pytest.mark.parametrize(
    "name, answer",
    [
        ("glu", "did you mean 'gated' with activation=...?"),
        ("squared_relu", "did you mean 'plain' with activation='relu2'?"),
        ("mlp", "did you mean 'plain'?"),
        ("mixture-of-experts", "did you mean 'moe'?"),
        ("deepseek_moe", "did you mean 'moe' with shared_hidden=...?"),
        (
            "expert_choice",
            "there is no such feed-forward; valid are: channel_mix, dense_beside_moe, ",
        ),
        ("rwkv7", "did you mean 'channel_mix'?"),
    ],
)
def test_a_feed_forward_is_known_by_its_other_names(name, answer):
    with pytest.raises(ConfigError, match="model.mlp.kind is ") as caught:
        feedforward.read_feedforward(dict(kind=name, hidden=4), "model.mlp")
    assert answer in str(caught.value)


@pytest.mark.parametrize(
    "name, answer",
    [
        ("RMS_Norm", "did you mean 'rmsnorm'?"),
        ("gemma", "did you mean 'rmsnorm_unit_offset'?"),
        ("ln", "did you mean 'layernorm'?"),
        ("batchnorm", "there is no such norm; valid are: layernorm, "),
    ],
)
def test_a_norm_is_known_by_its_other_names(name, answer):
    with pytest.raises(ConfigError) as caught:
        read_dataclass(ModelConfig, dict(norm=name), "model")
    assert str(caught.value).startswith(f"model.norm is {name!r}: {answer}")


@pytest.mark.parametrize("registry", [mixers, feedforward])
def test_a_name_has_one_meaning_and_the_settings_it_needs_exist(registry):
    tables = [vars(c).get("other_names", {}) for c in registry.KINDS.values()]
    names = [*registry.KINDS, *registry.ABSENT, *itertools.chain(*tables)]
    assert len(set(names)) == len(names)
    for cls, table in zip(registry.KINDS.values(), tables):
        settings = {text.partition("=")[0] for text in table.values() if text}
        assert settings <= set(cls.__dataclass_fields__)


def test_other_names_of_norms_mean_norms():
    assert {m.strip("'") for m in OTHER_NORM_NAMES.values() if m != ABSENT} <= set(NORMS)
    assert not set(OTHER_NORM_NAMES) & set(NORMS)
