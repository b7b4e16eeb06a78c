"""Inkling: windows of 512 and full attention without RoPE, and 256 experts.

Hardware: accelerators with memory for 2.0 TB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show inkling_975b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/inkling_975b.py --workdir runs/inkling_975b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Inkling",
    developer="Thinking Machines",
    released="2026-07",
    source="announcement, 2026-07; the class inkling of transformers 5.24, whose default sizes are this model's",
    upstream="thinkingmachines/Inkling",
    context=1_048_576,
    total="975B",
    active="41B",
    unsupported=[
        "a learned bias for each distance of query and key, up to 512 and 1,024 tokens",
        "four short convolutions a layer: of keys, of values and of both outputs",
        "a router that weighs the shared experts, too",
        "the norm of the embedding",
        "the modules that predict further tokens, and those that read images and sound",
    ],
    left_out={
        "the distances' biases": 66 * 6144 * 1024 + 16 * (55 * 512 + 11 * 1024),
        "the short convolutions": 4 * (55 * 2 * 2048 + 11 * 2 * 1024 + 66 * 2 * 6144),
        "the router's weights of shared experts, and its scale": 66 * (2 * 6144 + 1),
        "the norm of the embedding": 6144,
    },
    unconfirmed=["growth of the full layers' logits with the position"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    common = dict(rope=None, qk_norm=True, scale=1 / 128)
    router = dict(scores="sigmoid", normalize=True, scale=8.0, choice_bias=True)
    return recipe(
        arg,
        width=6144,
        depth=66,
        pattern="local*5 full",
        mixers=dict(
            local=attention(64, 16, 128, window=512, **common),
            full=attention(64, 8, 128, **common),
        ),
        mlp=dict(
            kind="moe", experts=256, top_k=6, hidden=3072, shared_hidden=2 * 3072, router=router
        ),
        vocab_size=201_024,
        logit_scale=1 / 24,
        tie_embeddings=False,
    )
