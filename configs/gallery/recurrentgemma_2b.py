"""RecurrentGemma 2B (arXiv 2404.07839): two layers of RG-LRU to one with a window of 2,048.

Hardware: accelerators with memory for 6 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show recurrentgemma_2b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/recurrentgemma_2b.py --workdir runs/recurrentgemma_2b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="RecurrentGemma 2B",
    developer="Google",
    released="2024-04",
    source="arXiv 2404.07839; Griffin: arXiv 2402.19427",
    upstream="google/recurrentgemma-2b",
    context=8192,
    total="2.7B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    local = attention(10, 1, 256, window=2048, rope=dict(theta=10_000.0, fraction=0.5), bias="out")
    return recipe(
        arg,
        width=2560,
        depth=26,
        pattern="rglru*2 local",
        mixers=dict(rglru=dict(kind="rglru", heads=10, bias=True), local=local),
        mlp=dict(kind="gated", hidden=7680, activation="gelu_tanh", bias=True),
        vocab_size=256_000,
        norm="rmsnorm_unit_offset",
        embedding_scale=2560**0.5,
        logit_soft_cap=30.0,
    )
