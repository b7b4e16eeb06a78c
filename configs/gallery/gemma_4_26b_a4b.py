"""Gemma 4 26B-A4B: windows and full attention, a dense feed-forward beside 8 of 128 experts.

Hardware: accelerators with memory for 50 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show gemma_4_26b_a4b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/gemma_4_26b_a4b.py --workdir runs/gemma_4_26b_a4b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Gemma 4 26B-A4B",
    developer="Google",
    released="2026-04",
    source="Gemma 4 model card, 2026-04",
    upstream="google/gemma-4-26B-A4B",
    context=262_144,
    total="25.2B",
    active="3.8B",
    unsupported=["the vision encoder, which the 25.2B leave out"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    common = dict(qk_norm=True, v_norm=True, scale=1.0)
    local = attention(16, 8, 256, window=1024, rope=dict(theta=10_000.0), **common)
    far = dict(theta=1_000_000.0, kept=dict(fraction=0.25))
    return recipe(
        arg,
        width=2816,
        depth=30,
        pattern="local*5 full",
        mixers=dict(local=local, full=attention(16, 2, 512, rope=far, values="keys", **common)),
        mlp=dict(
            kind="dense_beside_moe",
            dense=dict(kind="geglu", hidden=2112),
            moe=dict(
                kind="moe",
                experts=128,
                top_k=8,
                hidden=704,
                activation="gelu_tanh",
                router=dict(normalize=True, input_norm=True, expert_scale=True),
            ),
        ),
        vocab_size=262_144,
        block="scaled_sandwich",
        embedding_scale=2816**0.5,
        logit_soft_cap=30.0,
    )
