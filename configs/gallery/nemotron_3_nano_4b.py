"""Nemotron 3 Nano 4B: Mamba-2, feed-forwards and four attentions, each a layer.

Hardware: accelerators with memory for 8 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show nemotron_3_nano_4b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/nemotron_3_nano_4b.py --workdir runs/nemotron_3_nano_4b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Nemotron 3 Nano 4B",
    developer="NVIDIA",
    released="2026-03",
    source="Nemotron 3 Nano 4B blog post, 2026-03",
    upstream="nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16",
    context=262_144,
    total="4B",
)

PATTERN = "M-M-M-MM-M-M*-M-M*-M-M-M*-M-M-MM*-MMM-M-M-"
LAYERS = {"M": "mamba+none", "*": "full+none", "-": "none+relu2"}


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipe(
        arg,
        width=3136,
        depth=42,
        pattern=" ".join(LAYERS[letter] for letter in PATTERN),
        mixers=dict(
            mamba=dict(kind="mamba2", heads=96, head_dim=80, state_dim=128, groups=8),
            full=attention(40, 8, 128, rope=None),
        ),
        mlp=None,
        feedforwards=dict(relu2=dict(kind="plain", hidden=12544, activation="relu2")),
        vocab_size=131_072,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
