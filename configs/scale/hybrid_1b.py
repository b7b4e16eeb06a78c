"""A hybrid of 1.0B parameters: Gated DeltaNet, sliding-window attention, full attention with NoPE.

Sharded over all chips with `mesh.fsdp`, 262,144 tokens per step, 20B tokens in all. The data is a
placeholder, the bundled text as bytes: set `data.sources` and `data.tokenizer`.

Hardware: v5e:4x4 (16 chips); docs/scale.md has the compiler's memory and FLOPs.
Expected: unknown; it has not been trained, because no such slice was available.
Run:      hybridlm train --config configs/scale/hybrid_1b.py --workdir runs/hybrid_1b
Compile:  hybridlm compile --config configs/scale/hybrid_1b.py --topology v5e:4x4
"""

from ml_collections import ConfigDict

from hybrid import hybrid


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return hybrid(
        arg,
        width=2048,
        units=6,
        hidden=5632,
        kv_heads=4,
        window=1024,
        seq_len=4096,
        batch_size=64,
        lr=4e-4,
        steps=76_000,
        tie_embeddings=True,
    )
