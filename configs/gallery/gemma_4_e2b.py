"""Gemma 4 E2B: a vector of each token for each layer, and 20 layers that attend to keys of two below.

Hardware: accelerators with memory for 10 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show gemma_4_e2b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/gemma_4_e2b.py --workdir runs/gemma_4_e2b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Gemma 4 E2B",
    developer="Google",
    released="2026-04",
    source="Gemma 4 model card, 2026-04; the class gemma4_text of transformers 5.23",
    upstream="google/gemma-4-E2B",
    context=131_072,
    total="2.3B",
    total_excludes="embeddings of layers",
    unsupported=["the encoders of images and of sound"],
    unconfirmed=["the width, and how many layers share keys, with which 2.3B come out"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    near = dict(window=512, rope=dict(theta=10_000.0))
    far = dict(rope=dict(theta=1_000_000.0, kept=dict(fraction=0.25)))
    common = dict(qk_norm=True, scale=1.0)

    def layer(size: int, name: str, role: str, settings: dict) -> dict:
        kept = {"own": {}, "out": dict(kv_out=name), "in": dict(kv_in=name)}[role]
        norm = {} if role == "in" else dict(v_norm=True)
        return attention(8, 1, size, **settings, **common, **norm, **kept)

    return recipe(
        arg,
        width=1536,
        depth=35,
        prefix="local*4 full local*4 full local*3 local_out full_out",
        pattern="local_in+wide*4 full_in+wide",
        mixers=dict(
            local=layer(256, "local", "own", near),
            full=layer(512, "full", "own", far),
            local_out=layer(256, "local", "out", near),
            full_out=layer(512, "full", "out", far),
            local_in=layer(256, "local", "in", near),
            full_in=layer(512, "full", "in", far),
        ),
        mlp=dict(kind="geglu", hidden=6144),
        feedforwards=dict(wide=dict(kind="geglu", hidden=12_288)),
        vocab_size=262_144,
        block="scaled_sandwich",
        embedding_scale=1536**0.5,
        logit_soft_cap=30.0,
        per_layer=dict(size=256),
    )
