"""Step 3.5 Flash (arXiv 2602.10604): three layers with a window of 512 to one of full attention.

Hardware: accelerators with memory for 393 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show step_3_5_flash`); no loss is stated.
Run:      hybridlm train --config configs/gallery/step_3_5_flash.py --workdir runs/step_3_5_flash
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Step 3.5 Flash",
    developer="StepFun",
    released="2026-02",
    source="arXiv 2602.10604",
    upstream="stepfun-ai/Step-3.5-Flash",
    context=262_144,
    total="196B",
    total_excludes="embedding and head",
    active="11B",
    active_excludes="embedding and head",
    unsupported=["three modules that predict further tokens, which the 196B leave out"],
    unconfirmed=["bases of RoPE", "the scale of the router's weights"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    common = dict(qk_norm=True, output_gate="head")
    local = attention(96, 8, 128, window=512, rope=dict(theta=10_000.0), **common)
    far = dict(theta=5_000_000.0, fraction=0.5)
    router = dict(scores="sigmoid", normalize=True, scale=3.0, choice_bias=True)
    moe = dict(kind="moe", experts=288, top_k=8, hidden=1280, shared_hidden=1280, router=router)
    return recipe(
        arg,
        width=4096,
        depth=45,
        prefix="full local*2 local+moe",
        pattern="full+moe local+moe*3",
        suffix="full+moe",
        mixers=dict(local=local, full=attention(64, 8, 128, rope=far, **common)),
        mlp=dict(kind="swiglu", hidden=11264),
        feedforwards=dict(moe=moe),
        vocab_size=128_896,
        norm="rmsnorm_unit_offset",
        norm_eps=1e-5,
        tie_embeddings=False,
    )
