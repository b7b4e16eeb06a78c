"""Small runs that together use every mixer, block, optimizer and schedule: `recipe.py:CASE`."""

from ml_collections import ConfigDict

MIXERS = {
    "swa": dict(kind="attention", heads=4, kv_heads=2, window=9, qk_norm=True, output_gate=True),
    "sink": dict(kind="attention", heads=2, head_dim=8, window=7, sinks=True, soft_cap=20.0),
    "chunked": dict(kind="attention", heads=4, chunk=16, qk_norm="l2", output_gate="head"),
    "full": dict(kind="attention", heads=4, kv_heads=2, rope=None),
    "mla": dict(kind="mla", heads=2, kv_rank=8, q_rank=12, qk_nope=6, qk_rope=4, value_dim=7),
    "moba": dict(kind="moba", heads=4, kv_heads=2, block=8, top_k=2),
    "gsa": dict(kind="gsa", heads=4, kv_heads=2, slots=6),
    "nha": dict(kind="nha", heads=4, kv_heads=2, slots=5, window=7, slot_usage_weight=0.1),
    "rec": dict(kind="rglru", heads=2),
    "deltanet": dict(kind="deltanet", heads=2, negative_eigenvalues=True),
    "gdn": dict(kind="gdn", heads=2, value_heads=4, head_dim=8, value_dim=8),
    "kda": dict(kind="kda", heads=2, head_dim=8),
    "local": dict(kind="short_conv"),
    "selective": dict(kind="mamba1", state_dim=4, norm="rmsnorm"),
    "ssd": dict(kind="mamba2", head_dim=16, state_dim=8),
    "mlstm": dict(kind="mlstm"),
    "gla": dict(kind="gla", heads=2),
    "hgrn2": dict(kind="hgrn2", expand=8),
    "lightning": dict(kind="lightning", heads=4),
    "hymba": dict(
        kind="parallel",
        branches=dict(
            attention=dict(kind="attention", heads=2, kv_heads=1, window=6),
            recurrence=dict(kind="mamba2", heads=2, head_dim=8, state_dim=8),
        ),
    ),
}

MODEL = dict(width=32, mlp=dict(kind="swiglu", hidden=48), prefix="", suffix="")
OPTIMIZER = dict(lr=3e-3, schedule="cosine", warmup_steps=2)

# The model's settings, the optimizer's and the rest of the config, by case.
CASES = {
    "attention": (
        dict(pattern="swa full", depth=4, z_loss=1e-4, logit_soft_cap=30.0),
        dict(name="adamw"),
        {"probes": dict(which=["heads"], interval=3, samples=2, length=160)},
    ),
    "delta": (
        dict(pattern="gdn kda", suffix="deltanet", depth=3, block="sandwich"),
        dict(name="muon", muon_lr=1e-2),
        {},
    ),
    "ssm": (
        dict(pattern="ssd gla rec", depth=3, block="parallel", tie_embeddings=False),
        dict(name="adafactor", schedule="linear"),
        {},
    ),
    "selective": (
        dict(pattern="selective full", depth=2),
        dict(name="adamw", clip_norm=1.0),
        {},
    ),
    "linear": (
        dict(pattern="lightning hgrn2", depth=4, mlp=dict(kind="geglu", hidden=40)),
        dict(name="adamw", schedule="wsd", decay_steps=2, clip_norm=0.5),
        {"train": dict(accumulate=2, remat="full")},
    ),
    "slots": (
        dict(pattern="nha full", prefix="gsa", depth=5, embedding_scale=2.0),
        dict(name="muon", schedule="constant"),
        {"train": dict(remat="dots"), "data": dict(packing="best_fit")},
    ),
    "odd": (
        dict(pattern="moba mla", suffix="local hymba mlstm", depth=5),
        dict(name="adamw", weight_decay=0.3),
        {},
    ),
    "options": (
        dict(pattern="sink chunked full", depth=3, norm_eps=1e-5),
        dict(name="adamw", clip_norm=None),
        {"data": dict(cross_document_attention=True)},
    ),
    "mesh": (
        dict(pattern="swa gdn full", depth=3, tie_embeddings=False),
        dict(name="muon"),
        {"mesh": dict(data=1, fsdp=2, tensor=2), "train": dict(accumulate=2)},
    ),
}


def get_config(arg: str) -> ConfigDict:
    """The run named by `arg`, one of `CASES`."""
    model, optimizer, others = CASES[arg]
    names = f"{model['pattern']} {model.get('prefix', '')} {model.get('suffix', '')}".split()
    c = ConfigDict()
    c.seed = 7
    c.model = {**MODEL, **model, "mixers": {name: MIXERS[name] for name in names}}
    source = dict(kind="jsonl", path="data/corpora/state_of_the_union.jsonl.gz")
    c.data = dict(sources=dict(addresses=source), seq_len=48, batch_size=4)
    c.train = dict(
        steps=6, log_every=1, eval_every=3, eval_sequences=4, checkpoint_every=3, tensorboard=False
    )
    c.optimizer = {**OPTIMIZER, **optimizer}
    for part, settings in others.items():
        c[part] = {**c.get(part, {}), **settings}
    return c
