"""OLMo Hybrid 7B: three layers of Gated DeltaNet to one of full attention without positions.

Hardware: accelerators with memory for 15 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show olmo_hybrid_7b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/olmo_hybrid_7b.py --workdir runs/olmo_hybrid_7b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="OLMo Hybrid 7B",
    developer="Ai2",
    released="2026-03",
    source="Olmo Hybrid: From Theory to Practice and Back, 2026-04; OLMo 3: arXiv 2512.13961",
    upstream="allenai/Olmo-Hybrid-7B",
    context=65_536,
    total="7B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    gdn = dict(
        kind="gdn", heads=30, head_dim=96, value_dim=192, negative_eigenvalues=True, norm_eps=1e-5
    )
    return recipe(
        arg,
        width=3840,
        depth=32,
        pattern="gdn*3 full",
        mixers=dict(gdn=gdn, full=attention(30, 30, 128, rope=None, qk_norm="whole")),
        blocks=dict(full=dict(norms="postnorm")),
        mlp=dict(kind="swiglu", hidden=11008),
        vocab_size=100_352,
        tie_embeddings=False,
    )
