"""Laguna XS.2 33B-A3B: three layers with a window of 512 to one of full attention, 256 experts.

Hardware: accelerators with memory for 67 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show laguna_xs_2`); no loss is stated.
Run:      hybridlm train --config configs/gallery/laguna_xs_2.py --workdir runs/laguna_xs_2
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Laguna XS.2",
    developer="Poolside",
    released="2026-04",
    source="Laguna M.1 and XS.2 technical report, 2026-04",
    upstream="poolside/Laguna-XS.2",
    context=131_072,
    total="33B",
    active="3B",
    unsupported=["softplus on the output gates (here a sigmoid)"],
    unconfirmed=["that layers with a window have 64 query heads, and the others 48"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    common = dict(qk_norm=True, output_gate="head")
    local = attention(64, 8, 128, window=512, rope=dict(theta=10_000.0), **common)
    far = dict(theta=500_000.0, fraction=0.5)
    router = dict(scores="sigmoid", normalize=True, normalize_eps=1e-20, choice_bias=True)
    moe = dict(kind="moe", experts=256, top_k=8, hidden=512, shared_hidden=512, router=router)
    return recipe(
        arg,
        width=2048,
        depth=40,
        prefix="full local+moe*3",
        pattern="full+moe local+moe*3",
        mixers=dict(local=local, full=attention(48, 8, 128, rope=far, **common)),
        mlp=dict(kind="swiglu", hidden=8192),
        feedforwards=dict(moe=moe),
        vocab_size=100_352,
        tie_embeddings=False,
    )
