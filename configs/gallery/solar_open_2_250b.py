"""Solar Open 2 250B: three layers of Kimi Delta Attention to one of gated attention, 320 experts.

Hardware: accelerators with memory for 501 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show solar_open_2_250b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/solar_open_2_250b.py --workdir runs/solar_open_2_250b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Solar Open 2 250B",
    developer="Upstage",
    released="2026-07",
    source="the configuration class solar_open2 of public inference engines, 2026-07",
    upstream="upstage/Solar-Open2-250B",
    context=1_048_576,
    total="250B",
    active="15B",
    unconfirmed=["that the output gate has a number for each channel"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    kda = dict(kind="kda", heads=64, head_dim=128, lower_bound=-5.0, negative_eigenvalues=True)
    router = dict(scores="sigmoid", normalize=True, normalize_eps=1e-20, choice_bias=True)
    return recipe(
        arg,
        width=4096,
        depth=48,
        pattern="full kda*3",
        mixers=dict(kda=kda, full=attention(64, 8, 128, rope=None, output_gate=True)),
        mlp=dict(kind="moe", experts=320, top_k=8, hidden=1280, shared_hidden=1280, router=router),
        vocab_size=196_608,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
