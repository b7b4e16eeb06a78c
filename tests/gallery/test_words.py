"""Words about a model follow from its config."""

import pytest

from hybridlm.gallery import page, text, words
from hybridlm.models.feedforward import read_feedforward
from hybridlm.models.mixers import read_mixer
from tests.gallery.sheets import sheet_of

pytestmark = pytest.mark.xdist_group("gallery")  # they share the sheets


@pytest.mark.parametrize(
    ("name", "decoder", "mix", "positions", "attention"),
    [
        ("llama_3_8b", "dense transformer", "32 GQA", "RoPE 500,000", "GQA"),
        ("mamba2_2_7b", "dense recurrent", "64 Mamba-2", "none", "none"),
        (
            "gemma_3_27b",
            "dense transformer",
            "52 GQA, window 1,024 + 10 GQA",
            "RoPE 10,000 and RoPE 1,000,000 scaled x8",
            "GQA",
        ),
        (
            "kimi_linear_48b_a3b",
            "sparse hybrid",
            "20 Kimi Delta Attention + 7 MLA, NoPE",
            "NoPE",
            "MLA",
        ),
        ("falcon_h1_7b", "dense hybrid", "44 GQA beside Mamba-2", "RoPE 100,000,000,000", "GQA"),
        ("olmo_3_7b", "dense transformer", "24 MHA, window 4,096 + 8 MHA", None, "MHA"),
        ("recurrentgemma_2b", "dense hybrid", "18 RG-LRU + 8 MQA, window 2,048", None, "MQA"),
    ],
)
def test_a_model_in_a_few_words(name, decoder, mix, positions, attention):
    sheet = sheet_of(name)
    assert words.decoder(sheet) == decoder
    assert words.mix(sheet) == mix
    assert words.attention_kinds(sheet) == attention
    assert positions is None or words.all_positions(sheet) == positions


@pytest.mark.parametrize(
    ("settings", "short"),
    [
        (dict(kind="attention", heads=4, kv_heads=2), "GQA"),
        (
            dict(kind="attention", heads=4, kv_heads=2, rope=None, forget_gate=True),
            "GQA, NoPE, forget gates",
        ),
        (dict(kind="delta_product", heads=4), "Gated DeltaProduct, 2 updates a token"),
        (
            dict(kind="delta_product", heads=4, updates=1, decay=False),
            "DeltaProduct, 1 update a token",
        ),
    ],
)
def test_words_name_gates_and_updates(settings, short):
    mixer = read_mixer(settings, "m")
    assert words.short(mixer) == short
    for word in short.split(", "):
        assert word in words.long(mixer, 64)
        if mixer.kind_name == "delta_product" or word == "forget gates":
            assert word in mixer.mechanism


def test_norms_that_differ_by_layer_are_named_by_layer():
    assert words.norms(sheet_of("olmo_hybrid_7b")) == (
        "RMSNorm, after each half of a layer in full, before each half of a layer in gdn;"
        " queries and keys over all heads too"
    )


@pytest.mark.parametrize(
    ("name", "stream", "sharing"),
    [
        ("llama_3_8b", "one", "none"),
        (
            "glm_5_3_flash",
            "4, mixed anew for each token before each half (hyper-connections)",
            "none",
        ),
        (
            "gemma_4_e2b",
            "one; each layer adds a vector of 256 of the token (per-layer inputs)",
            "20 use keys and values of layers below",
        ),
    ],
)
def test_streams_and_what_layers_share_are_named(name, stream, sharing):
    """On the sheet, on the page, and in the drawing, which has a line for each stream."""
    sheet = sheet_of(name)
    assert words.stream(sheet) == stream and words.sharing(sheet) == sharing
    fields = {label: text for label, text, _ in page.fields(sheet)}
    assert fields["residual stream"] == stream and fields["layers that share"] == sharing
    shown = " ".join(text.show(sheet).split())
    assert f"residual stream {stream}" in shown and f"layers that share {sharing}" in shown


@pytest.mark.parametrize(
    ("own", "short", "long"),
    [
        ({}, "MLA, 64 chosen tokens", "64 tokens chosen by 3 heads of 96"),
        (
            dict(pool=16, index_loss=0.0, index_out="i"),
            "MLA, 64 chosen tokens, pools of 16",
            "64 tokens chosen by 3 heads of 96 in pools of 16, indexer of layers above too",
        ),
        (
            dict(index_in="i"),
            "MLA, 64 chosen tokens, shared indexer",
            "64 tokens chosen by the indexer of a layer below",
        ),
    ],
)
def test_words_name_pools_and_shared_indexers(own, short, long):
    mixer = read_mixer(dict(kind="dsa", heads=2, index_heads=3, index_dim=96, top_k=64) | own, "m")
    assert words.short(mixer) == short
    assert words.long(mixer, 64).endswith(long)


@pytest.mark.parametrize("kind", ["gated", "moe"])
def test_words_name_clamps(kind):
    sizes = dict(moe=dict(experts=4, top_k=2), gated={})[kind]
    config = read_feedforward(dict(kind=kind, hidden=8, clamp=10.0) | sizes, "mlp")
    assert words.feedforward(config).endswith(", clamp 10")
    plain = read_feedforward(dict(kind=kind, hidden=8) | sizes, "mlp")
    assert "clamp" not in words.feedforward(plain)
