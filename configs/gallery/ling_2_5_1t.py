"""Ling 2.5 1T: seven layers of Lightning attention to one of latent attention, 256 experts.

Hardware: accelerators with memory for 2 TB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show ling_2_5_1t`); no loss is stated.
Run:      hybridlm train --config configs/gallery/ling_2_5_1t.py --workdir runs/ling_2_5_1t
"""

from ml_collections import ConfigDict

from published import recipe

FACTS = dict(
    title="Ling 2.5 1T, Ling 2.6 1T",
    developer="Inclusion AI",
    released="2026-02",
    source="Ling 2.5 model card, 2026-02",
    upstream="inclusionAI/Ling-2.5-1T",
    context=262_144,
    total="1T",
    active="63B",
    cut=True,
    unsupported=["a norm of the output by groups of heads (here by heads)"],
    unconfirmed=["bases of RoPE", "the scale of the router's weights"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    lightning = dict(
        kind="lightning",
        heads=64,
        head_dim=128,
        activation="none",
        rope=dict(theta=600_000.0, fraction=0.5),
        qk_norm=True,
        scale=128**-0.5,
    )
    mla = dict(kind="mla", heads=64, q_rank=1536, rope=dict(theta=600_000.0))
    router = dict(
        scores="sigmoid",
        normalize=True,
        normalize_eps=1e-20,
        scale=2.5,
        choice_bias=True,
        groups=8,
        top_groups=4,
    )
    moe = dict(kind="moe", experts=256, top_k=8, hidden=2048, shared_hidden=2048, router=router)
    return recipe(
        arg,
        width=8192,
        depth=80,
        prefix="lightning*4 lightning+moe*3 mla+moe",
        pattern="lightning+moe*7 mla+moe",
        mixers=dict(lightning=lightning, mla=mla),
        mlp=dict(kind="swiglu", hidden=18432),
        feedforwards=dict(moe=moe),
        vocab_size=157_184,
        tie_embeddings=False,
    )
