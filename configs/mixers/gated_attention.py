"""Gated windowed attention three times, full NoPE attention once, on the State of the Union addresses.

An output gate after attention, partial RoPE (Qwen3-Next's attention, arXiv 2505.06708).

Hardware: 2 CPU cores, 100 seconds of CPU time.
Expected: held-out loss of 2.14 nats (3.09 bits per byte).
Run:      hybridlm train --config configs/mixers/gated_attention.py --workdir runs/gated_attention
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(
        arg,
        kind="attention",
        heads=4,
        kv_heads=2,
        window=64,
        output_gate=True,
        qk_norm=True,
        rope=dict(fraction=0.25),
    )
