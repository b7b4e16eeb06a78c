"""RecurrentGemma 9B (arXiv 2404.07839): two layers of RG-LRU to one with a window of 2,048.

Hardware: accelerators with memory for 17 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show recurrentgemma_9b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/recurrentgemma_9b.py --workdir runs/recurrentgemma_9b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="RecurrentGemma 9B",
    developer="Google",
    released="2024-06",
    source="arXiv 2404.07839; Griffin: arXiv 2402.19427",
    upstream="google/recurrentgemma-9b",
    context=8192,
    total="8.6B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    local = attention(16, 1, 256, window=2048, rope=dict(theta=10_000.0, fraction=0.5), bias="out")
    return recipe(
        arg,
        width=4096,
        depth=38,
        pattern="rglru*2 local",
        mixers=dict(rglru=dict(kind="rglru", heads=16, bias=True), local=local),
        mlp=dict(kind="gated", hidden=12288, activation="gelu_tanh", bias=True),
        vocab_size=256_000,
        norm="rmsnorm_unit_offset",
        embedding_scale=4096**0.5,
        logit_soft_cap=30.0,
    )
