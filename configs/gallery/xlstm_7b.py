"""xLSTM 7B (arXiv 2503.13427): mLSTM alone, without attention.

Hardware: accelerators with memory for 14 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show xlstm_7b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/xlstm_7b.py --workdir runs/xlstm_7b
"""

from ml_collections import ConfigDict

from published import recipe

FACTS = dict(
    title="xLSTM 7B",
    developer="NXAI",
    released="2025-03",
    source="arXiv 2503.13427",
    upstream="NX-AI/xLSTM-7b",
    context=8192,
    total="6.87B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipe(
        arg,
        width=4096,
        depth=32,
        pattern="mlstm",
        mixers=dict(mlstm=dict(kind="mlstm", heads=8)),
        mlp=dict(kind="swiglu", hidden=10944),
        vocab_size=50_304,
        tie_embeddings=False,
        logit_soft_cap=30.0,
    )
