"""A hybrid of 6.8B parameters: Gated DeltaNet, sliding-window attention, full attention with NoPE.

Sharded over all chips with `mesh.fsdp`, 1,048,576 tokens per step, 136B tokens in all. The data is a
placeholder, the bundled text as bytes: set `data.sources` and `data.tokenizer`.

Hardware: v5p:4x4x4 (64 chips); docs/scale.md has the compiler's memory and FLOPs.
Expected: unknown; it has not been trained, because no such slice was available.
Run:      hybridlm train --config configs/scale/hybrid_7b.py --workdir runs/hybrid_7b
Compile:  hybridlm compile --config configs/scale/hybrid_7b.py --topology v5p:4x4x4
"""

from ml_collections import ConfigDict

from hybrid import hybrid


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return hybrid(
        arg,
        width=4096,
        units=11,
        hidden=11_008,
        kv_heads=8,
        window=2048,
        seq_len=8192,
        batch_size=128,
        lr=3e-4,
        steps=130_000,
    )
