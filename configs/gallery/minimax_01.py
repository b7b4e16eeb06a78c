"""MiniMax-01 (arXiv 2501.08313): seven layers of Lightning attention to one of softmax attention.

Hardware: accelerators with memory for 913 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show minimax_01`); no loss is stated.
Run:      hybridlm train --config configs/gallery/minimax_01.py --workdir runs/minimax_01
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="MiniMax-01",
    developer="MiniMax",
    released="2025-01",
    source="arXiv 2501.08313",
    upstream="MiniMaxAI/MiniMax-Text-01",
    context=4_194_304,
    total="456B",
    active="45.9B",
    active_excludes="embedding and head",
    unsupported=[
        "decays that grow smaller from layer to layer (here all those of the lowest layer)"
    ],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    rope = dict(theta=10_000_000.0, fraction=0.5)
    joins = dict(norms="normed", mixer_keep=3.5565588200778455, mlp_keep=3.5565588200778455)
    return recipe(
        arg,
        width=6144,
        depth=80,
        pattern="lightning*7 full",
        mixers=dict(
            lightning=dict(kind="lightning", heads=64, head_dim=128, norm_eps=1e-6),
            full=attention(64, 8, 128, rope=rope),
        ),
        mlp=dict(kind="moe", experts=32, top_k=2, hidden=9216, router=dict(normalize=True)),
        blocks=dict(lightning=joins, full=joins),
        vocab_size=200_064,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
