"""Nemotron 3 Nano 30B-A3B: Mamba-2, experts and few attentions, each a layer.

Hardware: accelerators with memory for 63 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show nemotron_3_nano_30b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/nemotron_3_nano_30b.py --workdir runs/nemotron_3_nano_30b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Nemotron 3 Nano 30B-A3B, Nemotron 3.5 Lightning",
    developer="NVIDIA",
    released="2025-12",
    source="Nemotron 3 Nano technical report, 2025-12",
    upstream="nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    context=1_048_576,
    total="31.6B",
    active="3.2B",
    active_excludes="embedding",
)

PATTERN = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
LAYERS = {"M": "mamba+none", "*": "full+none", "E": "none+moe"}


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipe(
        arg,
        width=2688,
        depth=52,
        pattern=" ".join(LAYERS[letter] for letter in PATTERN),
        mixers=dict(
            mamba=dict(kind="mamba2", heads=64, head_dim=64, state_dim=128, groups=8),
            full=attention(32, 2, 128, rope=None),
        ),
        mlp=None,
        feedforwards=dict(
            moe=dict(
                kind="moe",
                experts=128,
                top_k=6,
                hidden=1856,
                activation="relu2",
                gated=False,
                shared_hidden=3712,
                router=dict(
                    scores="sigmoid",
                    normalize=True,
                    normalize_eps=1e-20,
                    scale=2.5,
                    choice_bias=True,
                ),
            )
        ),
        vocab_size=131_072,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
