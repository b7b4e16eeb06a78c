"""The same calls to public kernels of other projects, for comparison in the scorecard."""

import importlib.util
import itertools

import jax
import jax.numpy as jnp

from kernels_pallas.aot.case import Array, Case, with_gradients
from kernels_pallas.attention import cases as attention

#: Queries and keys of a block, and keys that are multiplied at a time, by window.
SPLASH_BLOCKS = {
    128: (
        *((128, 128, 128), (256, 128, 128), (512, 128, 128)),
        *((256, 256, 128), (256, 256, 256), (512, 256, 256), (512, 512, 512)),
    ),
    512: (
        *((256, 256, 256), (256, 512, 256), (512, 256, 256)),
        *((512, 512, 256), (512, 512, 512), (1024, 512, 512)),
    ),
    2048: (
        *((512, 512, 512), (512, 1024, 512), (1024, 512, 512)),
        *((1024, 1024, 512), (1024, 1024, 1024)),
    ),
    None: ((512, 1024, 512), (1024, 1024, 512), (1024, 1024, 1024), (1024, 2048, 512)),
}
#: The same, with one backward kernel for all gradients. It visits all key blocks for any window, so it
#: is used only for full attention.
FUSED = ((1024, 1024, 512), (1024, 1024, 1024))


def _splash(window: int | None, queries: int, keys: int, compute: int, fused=False) -> Case:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    time, heads = attention.TIME, attention.HEADS

    def call(q_BTHK, k_BTHK, v_BTHK, ids_BT):
        shape = (time, time)
        # The left size counts keys before the query's own.
        one = (
            masks.CausalMask(shape)
            if window is None
            else masks.LocalMask(shape, (window - 1, 0), 0)
        )
        backward = dict(block_q_dkv=queries, block_kv_dkv=keys, block_kv_dkv_compute=compute)
        if not fused:
            backward |= dict(block_q_dq=queries, block_kv_dq=keys)
        sizes = splash.BlockSizes(
            block_q=queries,
            block_kv=keys,
            block_kv_compute=compute,
            use_fused_bwd_kernel=fused,
            **backward,
        )
        kernel = splash.make_splash_mha(
            masks.MultiHeadMask([one] * heads), head_shards=1, q_seq_shards=1, block_sizes=sizes
        )

        def row(q_THK, k_THK, v_THK, ids_T):
            q_HTK, k_HTK, v_HTK = (jnp.swapaxes(x, 0, 1) for x in (q_THK, k_THK, v_THK))
            out_HTK = kernel(q_HTK, k_HTK, v_HTK, splash.SegmentIds(ids_T, ids_T))
            return jnp.swapaxes(out_HTK, 0, 1)

        return jax.vmap(row)(q_BTHK * attention.SIZE**-0.5, k_BTHK, v_BTHK, ids_BT)

    share = _active(window, queries, keys)
    blocks = f"{queries}x{keys}" + (f"/{compute}" if compute < keys else "")
    name = f"splash W={window or 'all'} {blocks}" + " fused" * fused
    return Case(
        name,
        with_gradients(call, differentiated=3, others=1),
        attention.arguments()[:-1],
        tokens=attention.BATCH * time * heads,
        flops=attention.flops(window),
        rival_of=f"attention W={window or 'all'}",
        active=dict(fwd=share[0], dq=share[0], dkv=share[1]),
    )


def _active(window: int | None, queries: int, keys: int) -> tuple[float, float]:
    """The share of grid steps that have work: blocks of queries, and blocks of keys, visit only
    as many of the others as the busiest one needs."""
    window = attention.TIME if window is None else window
    rows, columns = attention.TIME // queries, attention.TIME // keys
    seen = [
        (i, j)
        for i, j in itertools.product(range(rows), range(columns))
        if j * keys < (i + 1) * queries and (j + 1) * keys > i * queries - window + 1
    ]
    by_row = [sum(i == row for i, _ in seen) for row in range(rows)]
    by_column = [sum(j == column for _, j in seen) for column in range(columns)]
    return tuple(sum(n) / (len(n) * max(n)) for n in (by_row, by_column))


def _deltanet(function: str, heads: int, gate_size: int | None, rival_of: str) -> Case:
    """A call of the package `deltanet-tpu` with the shapes of its own benchmark."""
    leading = (1, attention.TIME, heads)
    vector, gate = Array((*leading, 128)), Array(leading + ((gate_size,) if gate_size else ()))
    gates = (gate,) if function == "chunk_gla" else (gate, Array(leading))

    def call(*arguments):
        import deltanet_tpu

        *arrays, ids = arguments
        return getattr(deltanet_tpu, function)(*arrays, segment_ids=ids)

    inputs = (vector, vector, vector, *gates)
    return Case(
        f"deltanet-tpu {function.removeprefix('chunk_')} {heads} heads",
        with_gradients(call, differentiated=len(inputs), others=1),
        (*inputs, Array((1, attention.TIME), jnp.int32), vector),
        tokens=attention.TIME * heads,
        rival_of=rival_of,
    )


_SPLASH = tuple(
    _splash(window, *blocks) for window, tried in SPLASH_BLOCKS.items() for blocks in tried
) + tuple(_splash(None, *blocks, fused=True) for blocks in FUSED)
_DELTANET = (
    _deltanet("chunk_gdn", 16, None, "delta_rule scalar gate"),
    _deltanet("chunk_kda", 32, 128, "delta_rule channel gate"),
    _deltanet("chunk_gla", 16, 128, "gated_linear channel gate"),
)
CASES = _SPLASH + (_DELTANET if importlib.util.find_spec("deltanet_tpu") else ())
