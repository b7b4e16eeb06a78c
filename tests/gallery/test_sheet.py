"""Fact sheets agree with what was published, and with the definitions of their figures."""

import dataclasses
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm import gallery
from hybridlm.gallery.facts import bounds
from hybridlm.gallery.sheet import decode_flops, kv_bytes_per_token
from hybridlm.models.mixers import read_mixer
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.dsa import DSAConfig
from hybridlm.models.mixers.mla import MLAConfig
from hybridlm.models.params import Model
from tests.gallery.sheets import ROOT, sheet_of

pytestmark = pytest.mark.xdist_group("gallery")  # they share the sheets

KIB = {
    "llama_3_8b": 128,
    "gemma_3_27b": 496,
    "gemma_4_26b_a4b": 210,
    "gemma_4_31b": 840,
    "gpt_oss_120b": 72,
    "gpt_oss_20b": 48,
    "deepseek_v3": 68.6,
    "deepseek_v3_2": 68.6,
    "glm_5": 87.8,
    "kimi_linear_48b_a3b": 7.9,
    "laguna_xs_2": 160,
    "ling_2_5_1t": 11.25,
    "llama_4_maverick": 192,
    "mimo_v2_flash": 217.5,  # a public table has 144 KiB, too, on the same backbone
    "nemotron_3_nano_30b": 6,
    "nemotron_3_nano_4b": 16,
    "nemotron_3_super_120b": 8,
    "olmo_2_7b": 512,
    "olmo_3_32b": 256,
    "olmo_3_7b": 512,
    "qwen3_30b_a3b": 96,
    "qwen3_5_27b": 64,
    "qwen3_5_35b_a3b": 20,
    "qwen3_5_397b_a17b": 30,
    "qwen3_8b": 144,
    "qwen3_next_80b_a3b": 24,
    "smollm3_3b": 72,
    "tiny_aya_3b": 72,
    "trinity_large_400b": 240,
    "xlstm_7b": 0,
}
WIDTH = 64


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", gallery.names(ROOT / "configs" / "gallery"))


@pytest.mark.parametrize("model", KIB)
def test_bytes_of_keys_and_values_are_those_of_the_public_tables(model):
    assert sheet_of(model).kv_bytes_per_token / 1024 == pytest.approx(KIB[model], abs=0.05)


@pytest.mark.parametrize(("model", "kib"), [("deepseek_v4_pro", 7.7), ("deepseek_v4_1_flash", 2.5)])
def test_compressed_keys_are_those_of_the_publications(model, kib):
    """V4-Pro's as in the public table. V4.1's report has 890 bytes a token, indexers' keys included.

    Those are of 4 bits each, with a scale of 8 bits for 16 entries of a key, and for 32 of an indexer's.
    """
    compressed = sum(sheet_of(model).facts.left_out_kv.values())
    assert compressed / 1024 == pytest.approx(kib, abs=0.05)
    if model == "deepseek_v4_1_flash":
        indexers = sum(sheet_of(model).facts.left_out_cache.values())
        assert compressed / 4 * 9 / 8 + indexers / 4 * 17 / 16 == pytest.approx(890, abs=0.5)


def test_parameters_are_as_published(name):
    """To the last digit that the publishers state."""
    sheet = sheet_of(name)
    facts = sheet.facts
    counts = [(sheet.total_as_published, facts.total), (sheet.active_as_published, facts.active)]
    for count, text in counts:
        if text is not None:
            low, high = bounds(text, facts.cut)
            assert low <= count <= high, f"{name}: {count:,} computed, {text} published"


def test_a_model_without_a_published_total_says_so(name):
    facts = sheet_of(name).facts
    assert (facts.total is None) == any("total" in what for what in facts.unconfirmed)


def test_the_count_is_that_of_the_whole_model():
    """Sheets trace each kind of layer once."""
    sheet = sheet_of("kimi_linear_48b_a3b")
    assert sheet.parameters == Model.of(sheet.config).count()


def test_a_token_is_multiplied_by_every_active_matrix(name):
    """Two FLOPs each, and attention and states come on top; norms and biases are no matrices."""
    sheet = sheet_of(name)
    looked_up = 0 if sheet.config.tie_embeddings else sheet.embedding
    looked_up += sheet.layer_embedding
    multiplied = sheet.active - looked_up - sum((sheet.facts.left_out or {}).values())
    for at in sheet.lengths:
        assert at.prefill_flops > 2 * 0.999 * multiplied
        assert at.decode_flops > 2 * 0.999 * multiplied


def test_a_cache_holds_no_key_beyond_those_of_the_public_count(name):
    """Recurrent states apart, which do not grow, and what that count leaves out."""
    sheet = sheet_of(name)
    first, *_, last = sheet.lengths
    beside = sum(kind.count * bytes_beside(kind) for kind in sheet.kinds)
    grown = last.cache_bytes - first.cache_bytes
    assert 0 <= grown <= (sheet.kv_bytes_per_token + beside) * (last.tokens - first.tokens)


def test_a_layer_that_uses_the_indexer_of_another_has_the_same_public_count():
    """Its cache has no keys of an indexer, and the count never has."""
    own = DSAConfig(heads=2, kv_rank=12, qk_nope=8, qk_rope=4, value_dim=8, top_k=4, index_out="i")
    reader = dataclasses.replace(own, index_out=None, index_in="i")
    assert kv_bytes_per_token(own, 32) == kv_bytes_per_token(reader, 32) == 2 * (12 + 4)


def bytes_beside(kind):
    """Bytes a token that a layer's cache holds beside the public count."""
    if isinstance(kind.mixer, DSAConfig):
        return 2 * kind.mixer.index_dim
    if isinstance(kind.mixer, AttentionConfig) and kind.mixer.values == "keys":
        return kind.kv_bytes_per_token  # keys and values that count once are cached twice
    return 0


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 40), window=st.integers(1, 50), kv_heads=st.sampled_from([1, 2, 4]))
def test_decoding_all_tokens_takes_the_flops_of_the_forward_pass(tokens, window, kv_heads):
    common = dict(kind="attention", heads=4, kv_heads=kv_heads, head_dim=8)
    local, chunked = dict(common, window=window), dict(common, chunk=window)
    both = dict(kind="parallel", branches=dict(a=local, b=dict(kind="rglru")))
    for settings_ in (common, local, chunked, both, dict(kind="gdn", heads=2, head_dim=8)):
        mixer = read_mixer(settings_, "mixer")
        decoded = sum(decode_flops(mixer, WIDTH, n) for n in range(1, tokens + 1))
        assert decoded == pytest.approx(tokens * mixer.flops_per_token(WIDTH, tokens))


@given(tokens=st.integers(1, 10**6), rank=st.integers(1, 64), shared=st.sampled_from([0, 2, 8]))
def test_a_latent_query_attends_to_latents_when_it_decodes(tokens, rank, shared):
    """Every cached number is multiplied once for the logits and once for the mixture, in each head."""
    mixer = MLAConfig(heads=3, kv_rank=rank, qk_nope=16, qk_rope=shared, value_dim=24)
    step = decode_flops(mixer, WIDTH, tokens + 1) - decode_flops(mixer, WIDTH, tokens)
    assert step == pytest.approx(2 * 2 * 3 * (rank + shared), rel=1e-6)
    queries, up = 3 * (16 + shared), rank * 3 * (16 + 24)
    fixed = WIDTH * (queries + rank + shared) + up + 3 * 24 * WIDTH
    assert decode_flops(mixer, WIDTH, tokens) == pytest.approx(2 * fixed + tokens * step, rel=1e-6)


@given(tokens=st.integers(1, 10**5), window=st.integers(1, 300))
def test_a_window_bounds_the_latents_that_decoding_attends_to(tokens, window):
    sizes = dict(heads=3, kv_rank=16, qk_nope=16, qk_rope=4, value_dim=24)
    full, near = MLAConfig(**sizes), MLAConfig(**sizes, window=window)
    seen = min(tokens, window)
    assert decode_flops(near, WIDTH, tokens) == pytest.approx(decode_flops(full, WIDTH, seen))
    assert near.state_bytes(WIDTH, tokens) == full.state_bytes(WIDTH, seen) == 2 * 20 * seen
    assert kv_bytes_per_token(near, WIDTH) == kv_bytes_per_token(full, WIDTH) == 2 * 20


@given(tokens=st.integers(1, 10**6), top_k=st.integers(1, 3000))
def test_a_sparse_query_attends_to_chosen_latents_and_scores_all_tokens(tokens, top_k):
    sizes = dict(heads=3, kv_rank=16, q_rank=8, qk_nope=16, qk_rope=4, value_dim=24)
    sparse = DSAConfig(**sizes, index_heads=2, index_dim=8, top_k=top_k)
    dense = decode_flops(MLAConfig(**sizes), WIDTH, min(tokens, top_k))
    indexer = 2 * (8 * 2 * 8 + WIDTH * (8 + 2) + (2 * 8 + 2) * tokens)
    assert decode_flops(sparse, WIDTH, tokens) == pytest.approx(dense + indexer, rel=1e-9)


@given(kv_heads=st.sampled_from([1, 2, 4]), size=st.sampled_from([8, 24]), span=st.integers(1, 99))
def test_windows_and_chunks_do_not_change_the_public_count(kv_heads, size, span):
    for spans in ({}, dict(window=span), dict(chunk=span)):
        mixer = AttentionConfig(heads=4, kv_heads=kv_heads, head_dim=size, **spans)
        assert kv_bytes_per_token(mixer, WIDTH) == 2 * kv_heads * size * 2


def test_the_gallery_of_another_folder(tmp_path):
    """Total and active parameters of a recipe that the test writes, counted by hand."""
    (tmp_path / "tiny.py").write_text(
        """FACTS = dict(title="Tiny", developer="us", released="2026-01", source="none",
    upstream="us/tiny", context=64, total="1M", outside={"a part": 7},
    left_out={"a matrix": 11}, left_out_kv={"its cache": 6}, left_out_cache={"an indexer": 5},
    surplus={"a full map": 20})


def get_config():
    model = dict(
        width=8, depth=2, pattern="a", vocab_size=10, tie_embeddings=False,
        mixers=dict(a=dict(kind="attention", heads=2, kv_heads=1, head_dim=4)),
        mlp=dict(kind="moe", experts=5, top_k=2, hidden=3),
    )
    data = dict(
        sources=dict(text=dict(kind="text", path="text.txt")), seq_len=8, batch_size=1
    )
    return dict(model=model, data=data, train=dict(steps=1), optimizer=dict(lr=1e-3))
""",
        encoding="utf-8",
    )
    sheet = gallery.sheet(gallery.load("tiny", pathlib.Path(tmp_path)))
    outside_experts = 2 * (8 * (8 + 4 + 4) + 8 * 8 + 8 * 5 + 2 * 8) + 2 * 80 + 8
    assert sheet.parameters == outside_experts + 2 * 5 * 3 * 8 * 3 + 7 + 11 - 20
    assert sheet.active == outside_experts + 2 * 2 * 3 * 8 * 3 + 11 - 20
    assert sheet.kv_bytes_per_token == 2 * 2 * 4 * 2 + 6
    assert [at.kv_bytes for at in sheet.lengths] == [at.tokens * 38 for at in sheet.lengths]
    assert [at.cache_bytes for at in sheet.lengths] == [at.tokens * 43 for at in sheet.lengths]
    plain = dataclasses.replace(sheet.facts, surplus=None)
    whole = gallery.sheet(gallery.Entry("tiny", plain, sheet.config))
    for at, more in zip(sheet.lengths, whole.lengths, strict=True):
        assert more.prefill_flops - at.prefill_flops == 2 * 20
        assert more.decode_flops - at.decode_flops == 2 * 20


def test_published_digits_stand_for_an_interval():
    assert bounds("8.03B") == pytest.approx((8.025e9, 8.035e9))
    assert bounds("1.5B", cut=True) == pytest.approx((1.5e9, 1.6e9))
    assert bounds("2.8T") == pytest.approx((2.75e12, 2.85e12))
