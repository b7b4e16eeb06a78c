"""Nemotron-H 8B (arXiv 2504.03624): Mamba-2, feed-forwards and few attentions, each a layer.

Hardware: accelerators with memory for 16 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show nemotron_h_8b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/nemotron_h_8b.py --workdir runs/nemotron_h_8b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Nemotron-H 8B",
    developer="NVIDIA",
    released="2025-03",
    source="arXiv 2504.03624",
    upstream="nvidia/Nemotron-H-8B-Base-8K",
    context=8192,
    total="8.1B",
)

PATTERN = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
LAYERS = {"M": "mamba+none", "*": "full+none", "-": "none+relu2"}


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipe(
        arg,
        width=4096,
        depth=52,
        pattern=" ".join(LAYERS[letter] for letter in PATTERN),
        mixers=dict(
            mamba=dict(kind="mamba2", heads=128, head_dim=64, state_dim=128, groups=8),
            full=attention(32, 8, 128, rope=None),
        ),
        mlp=None,
        feedforwards=dict(relu2=dict(kind="plain", hidden=21504, activation="relu2")),
        vocab_size=131_072,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
