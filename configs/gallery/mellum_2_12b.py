"""Mellum 2 12B-A2.5B: three layers with a window of 1,024 to one of full attention, 64 experts.

Hardware: accelerators with memory for 24 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show mellum_2_12b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/mellum_2_12b.py --workdir runs/mellum_2_12b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Mellum 2 12B-A2.5B",
    developer="JetBrains",
    released="2026-06",
    source="the class mellum of transformers 5.23, whose default sizes are this model's",
    upstream="JetBrains/Mellum2-12B-A2.5B-Base",
    context=131_072,
    total="12B",
    unconfirmed=[
        "the month of publication",
        "the order of the 21 layers with windows and the 7 others",
        "what the 2.5B active parameters of its name count",
    ],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    local = attention(32, 4, 128, window=1024, rope=dict(theta=10_000.0), qk_norm=True)
    return recipe(
        arg,
        width=2304,
        depth=28,
        pattern="local*3 full",
        mixers=dict(
            local=local, full=attention(32, 4, 128, rope=dict(theta=500_000.0), qk_norm=True)
        ),
        mlp=dict(kind="moe", experts=64, top_k=8, hidden=896, router=dict(normalize=True)),
        vocab_size=98_304,
        tie_embeddings=False,
    )
