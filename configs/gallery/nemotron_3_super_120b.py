"""Nemotron 3 Super 120B-A12B: Mamba-2, latent experts and few attentions, each a layer.

Hardware: accelerators with memory for 241 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show nemotron_3_super_120b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/nemotron_3_super_120b.py --workdir runs/nemotron_3_super_120b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Nemotron 3 Super 120B-A12B",
    developer="NVIDIA",
    released="2026-03",
    source="Nemotron 3 Super technical report, 2026-03",
    upstream="nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16",
    context=1_048_576,
    total="120.6B",
    active="12.7B",
    cut=True,
    unsupported=["the module that predicts further tokens"],
)

PATTERN = "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME"
LAYERS = {"M": "mamba+none", "*": "full+none", "E": "none+moe"}


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipe(
        arg,
        width=4096,
        depth=88,
        pattern=" ".join(LAYERS[letter] for letter in PATTERN),
        mixers=dict(
            mamba=dict(kind="mamba2", heads=128, head_dim=64, state_dim=128, groups=8),
            full=attention(32, 2, 128, rope=None),
        ),
        mlp=None,
        feedforwards=dict(
            moe=dict(
                kind="moe",
                experts=512,
                top_k=22,
                hidden=2688,
                latent=1024,
                activation="relu2",
                gated=False,
                shared_hidden=5376,
                router=dict(
                    scores="sigmoid",
                    normalize=True,
                    normalize_eps=1e-20,
                    scale=5.0,
                    choice_bias=True,
                ),
            )
        ),
        vocab_size=131_072,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
