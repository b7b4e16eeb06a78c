"""A hybrid of 70B parameters: Gated DeltaNet, windowed attention with RoPE, full attention with NoPE.

Heads and hidden units are shared by 4 chips (`mesh.tensor`), parameters by all; 4,194,304 tokens a
step, 1.4T tokens in all. The corpus of the checkout and a byte tokenizer stand in for yours: set
`data.sources` and `data.tokenizer`.

Hardware: v5p:8x8x8 (512 chips); docs/scale.md has what the compiler has said of it so far.
Expected: no loss is known: no such slice was at hand, and it has not trained.
Run:      hybridlm train --config configs/scale/hybrid_70b.py --workdir runs/hybrid_70b
Compile:  hybridlm compile --config configs/scale/hybrid_70b.py --topology v5p:8x8x8
"""

from ml_collections import ConfigDict

from hybrid import hybrid


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return hybrid(
        arg,
        width=8192,
        units=25,
        hidden=28_672,
        kv_heads=8,
        window=4096,
        seq_len=8192,
        batch_size=512,
        tensor=4,
        lr=1.5e-4,
        steps=334_000,
    )
