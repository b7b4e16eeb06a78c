"""Small models that use every option, and packed batches with random boundaries."""

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig

MIXERS = {
    "swa": dict(kind="attention", heads=4, kv_heads=2, window=5, qk_norm=True),
    "full": dict(kind="attention", heads=4, kv_heads=1, rope=None, output_gate=True),
    "sink": dict(
        kind="attention",
        heads=2,
        head_dim=8,
        value_dim=5,
        window=7,
        sinks=True,
        soft_cap=20.0,
        rope=dict(theta=500.0, fraction=0.5),
    ),
    "chunked": dict(
        kind="attention", heads=4, kv_heads=2, chunk=6, qk_norm="l2", output_gate="head"
    ),
    "forgetful": dict(kind="attention", heads=4, kv_heads=2, rope=None, forget_gate=True),
    "forgetful_swa": dict(
        kind="attention",
        heads=2,
        window=5,
        forget_gate=True,
        sinks=True,
        qk_norm=True,
        soft_cap=9.0,
    ),
    "biased": dict(kind="attention", heads=2, kv_heads=1, window=5, bias="qkv"),
    "growing": dict(
        kind="attention",
        heads=2,
        head_dim=12,
        value_dim=7,
        value_scale=0.7,
        rope=None,
        temperature=dict(scale=5.0),
        output_gate=True,
    ),
    "mla": dict(
        kind="mla",
        heads=3,
        kv_rank=10,
        q_rank=12,
        qk_nope=6,
        qk_rope=4,
        value_dim=7,
        rope=dict(theta=500.0),
    ),
    "mla_nope": dict(kind="mla", heads=2, kv_rank=9, qk_nope=5, qk_rope=3, value_dim=4, rope=None),
    "mla_latent": dict(kind="mla", heads=2, kv_rank=9, qk_nope=5, qk_rope=0, value_dim=4),
    "dsa": dict(
        kind="dsa",
        heads=3,
        kv_rank=10,
        q_rank=12,
        qk_nope=6,
        qk_rope=4,
        value_dim=7,
        index_heads=3,
        index_dim=6,
        top_k=5,
    ),
    "dsa_nope": dict(
        kind="dsa",
        heads=2,
        kv_rank=9,
        q_rank=8,
        qk_nope=5,
        qk_rope=0,
        value_dim=4,
        index_heads=4,
        index_dim=5,
        top_k=3,
    ),
    "dsa_pool": dict(
        kind="dsa",
        heads=2,
        kv_rank=9,
        q_rank=8,
        qk_nope=5,
        qk_rope=0,
        value_dim=4,
        index_heads=4,
        index_dim=5,
        top_k=6,
        pool=3,
        index_loss=0.0,
    ),
    "moba": dict(kind="moba", heads=4, kv_heads=2, block=3, top_k=2),
    "moba_nope": dict(kind="moba", heads=2, head_dim=5, block=4, top_k=3, rope=None),
    "gsa": dict(kind="gsa", heads=4, kv_heads=2, slots=6),
    "nha": dict(kind="nha", heads=4, kv_heads=2, slots=5, window=7),
    "nha0": dict(kind="nha", heads=2, slots=3, window=0, empty_slots="masked"),
    "nha_full": dict(kind="nha", heads=2, kv_heads=1, slots=3, window=None, head_dim=10),
    "nha_llm": dict(
        kind="nha",
        heads=4,
        kv_heads=1,
        slots=4,
        window=3,
        empty_slots="masked",
        swish_qk=False,
        swish_v=False,
        output_norm=False,
        scale=None,
        gate_normalizer=2.0,
        slot_usage_weight=0.3,
        rope=dict(theta=500.0, fraction=0.5),
    ),
    "rec": dict(kind="rglru", heads=2),
    "wide": dict(kind="rglru", heads=4, recurrent_width=48, conv_width=2),
    "deltanet": dict(kind="deltanet", heads=2, value_dim=5, negative_eigenvalues=True),
    "gdn": dict(kind="gdn", heads=4),
    "gdn_grouped": dict(
        kind="gdn",
        heads=2,
        value_heads=6,
        head_dim=5,
        value_dim=7,
        conv_width=3,
        negative_eigenvalues=True,
    ),
    "kda": dict(kind="kda", heads=2, head_dim=7),
    "kda_bounded": dict(kind="kda", heads=4, lower_bound=-5.0, negative_eigenvalues=True),
    "gdn2": dict(kind="gdn2", heads=2, head_dim=7, negative_eigenvalues=True),
    "gdn2_grouped": dict(kind="gdn2", heads=2, value_heads=4, head_dim=6, value_dim=5),
    "product": dict(kind="delta_product", heads=2, head_dim=6, value_dim=5),
    "product_grouped": dict(
        kind="delta_product",
        heads=2,
        value_heads=4,
        head_dim=5,
        value_dim=4,
        updates=3,
        decay=False,
        negative_eigenvalues=False,
    ),
    "rwkv7": dict(kind="rwkv7", head_dim=8, decay_rank=5, rate_rank=3, value_rank=4, gate_rank=6),
    "rwkv7_alone": dict(kind="rwkv7", head_dim=16, value_residual=False),
    "short": dict(kind="short_conv"),
    "short5": dict(kind="short_conv", conv_width=5),
    "s6": dict(kind="mamba1", state_dim=4),
    "s6_jamba": dict(
        kind="mamba1", inner=20, state_dim=3, dt_rank=5, conv_width=3, norm="rmsnorm", norm_eps=1e-3
    ),
    "s6_falcon": dict(
        kind="mamba1", expand=1, norm="unscaled", bias=True, conv_bias=False, conv_width=2
    ),
    "ssd": dict(kind="mamba2", head_dim=16, state_dim=12),
    "ssd_groups": dict(
        kind="mamba2",
        heads=6,
        head_dim=5,
        state_dim=7,
        groups=3,
        conv_width=3,
        norm="before_gate",
        dt_limits=(0.01, 0.5),
    ),
    "ssd_falcon": dict(kind="mamba2", heads=3, head_dim=8, state_dim=16, groups=1, norm="none"),
    "ssm3": dict(kind="mamba3", head_dim=16, state_dim=12),
    "ssm3_mimo": dict(
        kind="mamba3",
        heads=4,
        head_dim=5,
        state_dim=7,
        groups=2,
        rank=3,
        rope_fraction=1.0,
        norm=True,
    ),
    "mlstm": dict(kind="mlstm"),
    "mlstm_odd": dict(
        kind="mlstm", heads=3, qk_dim_factor=0.65625, v_dim_factor=1.21875, gate_soft_cap=8.0
    ),
    "hymba": dict(
        kind="parallel",
        branches=dict(
            attention=dict(kind="attention", heads=2, kv_heads=1, window=6),
            recurrence=dict(kind="rglru", heads=2),
        ),
    ),
    "nested": dict(
        kind="parallel",
        combine="sum",
        multipliers=dict(pair=0.5, conv=-1.5),
        branches=dict(
            full=dict(kind="attention", heads=4, rope=None),
            conv=dict(kind="short_conv", conv_width=2),
            pair=dict(
                kind="parallel",
                branches=dict(
                    swa=dict(kind="attention", heads=2, window=3),
                    rec=dict(kind="rglru", heads=4, recurrent_width=24),
                ),
            ),
        ),
    ),
    "gla": dict(kind="gla", heads=2),
    "gla_odd": dict(
        kind="gla", heads=3, expand_k=0.28125, expand_v=0.46875, gate_rank=5, gate_normalizer=2.0
    ),
    "hgrn2": dict(kind="hgrn2", expand=8),
    "hgrn2_bound": dict(kind="hgrn2", expand=16, lower_bound=0.3),
    "lightning": dict(kind="lightning", heads=4),
    "hypenet": dict(
        kind="lightning",
        heads=3,
        head_dim=6,
        decay="retnet",
        decay_scale=4.0,
        activation="none",
        rope=dict(theta=500.0),
        qk_norm=True,
        scale=0.4,
    ),
}


def model_config(pattern="swa full rec", depth=None, **settings) -> ModelConfig:
    """A model of width 32 with vocabulary 40."""
    names = set(f"{pattern} {settings.get('prefix', '')} {settings.get('suffix', '')}".split())
    defaults = dict(width=32, vocab_size=40, mlp=dict(kind="swiglu", hidden=48), init_std=0.5)
    return ModelConfig(
        **{
            **defaults,
            "pattern": pattern,
            "depth": depth or len(pattern.split()),
            "mixers": {n: m for n, m in MIXERS.items() if n in names},
            **settings,
        }
    )


def make(config: ModelConfig, seed: int = 0, dtype=jnp.float32):
    """(Model, parameters); all parameters are perturbed, so that none has a special value."""
    model = Model.of(config)
    params = jax.jit(model.init)(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return model, jax.tree.map(
        lambda p: jnp.asarray(p + 0.1 * rng.standard_normal(p.shape), dtype), params
    )


def context(segment_ids_BT) -> SequenceContext:
    """The context of packed documents; positions restart at each change of id."""
    ids = np.asarray(segment_ids_BT)
    positions = np.zeros_like(ids)
    for t in range(1, ids.shape[1]):
        positions[:, t] = np.where(ids[:, t] == ids[:, t - 1], positions[:, t - 1] + 1, 0)
    return SequenceContext(ids.astype(np.int32), positions.astype(np.int32))


def random_segments(rng: np.random.Generator, batch: int, time: int) -> np.ndarray:
    """Random documents of at least one token; some rows have padding at the end."""
    rows = []
    for _ in range(batch):
        cuts = np.sort(rng.choice(np.arange(1, time), size=rng.integers(0, 5), replace=False))
        row = 1 + np.searchsorted(cuts, np.arange(time), side="right")
        if rng.random() < 0.5:
            row[time - rng.integers(1, 4) :] = 0
        rows.append(row)
    return np.stack(rows)
