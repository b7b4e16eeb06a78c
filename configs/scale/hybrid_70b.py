"""A hybrid of 70B parameters: Gated DeltaNet, sliding-window attention, full attention with NoPE.

4 chips share heads and hidden units (`mesh.tensor`), and all chips shard the parameters. 4,194,304
tokens per step, 1.4T tokens in all. The data is a placeholder, the bundled text as bytes: set
`data.sources` and `data.tokenizer`.

Hardware: v5p:8x8x8 (512 chips); docs/scale.md has the compiler's memory and FLOPs.
Expected: unknown; it has not been trained, because no such slice was available.
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
        remat="unit",
        lr=1.5e-4,
        steps=334_000,
    )
