"""DeepSeek-V4-Pro: windows of 128 tokens and compressed keys beside them, 384 experts, four streams.

Hardware: accelerators with memory for 3.1 TB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show deepseek_v4_pro`); no loss is stated.
Run:      hybridlm train --config configs/gallery/deepseek_v4_pro.py --workdir runs/deepseek_v4_pro
"""

from ml_collections import ConfigDict

from deepseek_v4_flash import Sizes, facts, model

SIZES = Sizes(
    width=7168,
    heads=128,
    q_rank=1536,
    groups=16,
    experts=384,
    hidden=3072,
    scale=2.5,
    windows=0,
    near=30,
    far=31,
    chosen=1024,
)
FACTS = dict(
    title="DeepSeek-V4-Pro",
    developer="DeepSeek",
    released="2026-04",
    source="arXiv 2606.19348; config.json of the published weights; the class deepseek_v4 of transformers",
    upstream="deepseek-ai/DeepSeek-V4-Pro",
    context=1_048_576,
    total="1.6T",
    active="49B",
    active_excludes="embedding",
    **facts(SIZES),
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return model(arg, SIZES)
