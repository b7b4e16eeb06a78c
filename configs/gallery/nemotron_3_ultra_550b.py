"""Nemotron 3 Ultra 550B-A55B: Mamba-2, latent experts and few attentions, each a layer.

Hardware: accelerators with memory for 1.1 TB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show nemotron_3_ultra_550b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/nemotron_3_ultra_550b.py --workdir runs/nemotron_3_ultra_550b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Nemotron 3 Ultra 550B-A55B",
    developer="NVIDIA",
    released="2026-06",
    source="Nemotron 3 Ultra, research.nvidia.com, 2026-06",
    upstream="nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16",
    context=1_048_576,
    total="0.55T",  # published as 550B, of which the last digit is rounded
    active="55B",
    active_excludes="embedding",
    unsupported=["the modules that predict further tokens"],
)

PATTERN = (
    "MEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM"
    "*EMEMEMEM*EMEMEMEME"
)
LAYERS = {"M": "mamba+none", "*": "full+none", "E": "none+moe"}


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipe(
        arg,
        width=8192,
        depth=108,
        pattern=" ".join(LAYERS[letter] for letter in PATTERN),
        mixers=dict(
            mamba=dict(kind="mamba2", heads=256, head_dim=64, state_dim=128, groups=8),
            full=attention(64, 2, 128, rope=None),
        ),
        mlp=None,
        feedforwards=dict(
            moe=dict(
                kind="moe",
                experts=512,
                top_k=22,
                hidden=5120,
                latent=2048,
                activation="relu2",
                gated=False,
                shared_hidden=10240,
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
