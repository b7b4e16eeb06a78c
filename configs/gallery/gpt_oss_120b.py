"""gpt-oss-120b (arXiv 2508.10925): windows of 128 and full attention in turn, with sinks, and experts.

Hardware: accelerators with memory for 234 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show gpt_oss_120b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/gpt_oss_120b.py --workdir runs/gpt_oss_120b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="gpt-oss-120b",
    developer="OpenAI",
    released="2025-08",
    source="arXiv 2508.10925",
    upstream="openai/gpt-oss-120b",
    context=131_072,
    total="116.83B",
    active="5.13B",
    active_excludes="embedding",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    yarn = dict(factor=32.0, length=4096, truncate=False)
    common = dict(rope=dict(theta=150_000.0, yarn=yarn), sinks=True, bias=True)
    return recipe(
        arg,
        width=2880,
        depth=36,
        pattern="local full",
        mixers=dict(
            local=attention(64, 8, 64, window=128, **common), full=attention(64, 8, 64, **common)
        ),
        mlp=dict(
            kind="moe",
            experts=128,
            top_k=4,
            hidden=2880,
            bias=True,
            clamp=7.0,
            gate_slope=1.702,
            up_offset=1.0,
            router=dict(scores="softmax_chosen", bias=True),
        ),
        vocab_size=201_088,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
