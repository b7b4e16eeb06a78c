"""Block-sparse attention as a subject of the laws, and the faults that they must catch."""

import jax.numpy as jnp

from kernels_pallas import block_sparse
from kernels_pallas.block_sparse import chunked
from kernels_pallas.testing import Subject, normal
from subjects.faults import Fault, boundary_dropped, causal, forms, not_contained, packed, split


def block_sparse_subject(
    heads=4, kv_heads=2, key_size=8, value_size=6, block=3, top_k=2, slots=5, position=2
) -> Subject:
    def apply(inputs, params, segment_ids, state, impl):
        out, lse, final = block_sparse.block_sparse_attention(
            inputs["q"],
            inputs["k"],
            inputs["v"],
            block=block,
            top_k=top_k,
            segment_ids=segment_ids,
            initial_state=state,
            return_state=True,
            impl=impl,
        )
        if segment_ids is not None:
            lse = jnp.where((segment_ids == 0)[..., None], 0, lse)
        return dict(out=out, lse=lse), final

    def inputs(rng, batch, time, dtype):
        return dict(
            q=normal(rng, (batch, time, heads, key_size), dtype),
            k=normal(rng, (batch, time, kv_heads, key_size), dtype),
            v=normal(rng, (batch, time, kv_heads, value_size), dtype),
        )

    def state(rng, batch, dtype):
        positions_1S = position + jnp.arange(slots, dtype=jnp.int32)[None]
        return block_sparse.BlockSparseState(
            normal(rng, (batch, slots, kv_heads, key_size), dtype),
            normal(rng, (batch, slots, kv_heads, value_size), dtype),
            jnp.ones((batch, slots), jnp.int32),
            jnp.tile(positions_1S, (batch, 1)),
        )

    return Subject(
        name=f"block_sparse(block={block}, top_k={top_k}, heads={heads}/{kv_heads})",
        apply=apply,
        inputs=inputs,
        state=state,
        extremes={
            "large logits": lambda x: dict(x, q=x["q"] * 1e3, k=x["k"] * 1e3),
            "zero": lambda x: {name: array * 0 for name, array in x.items()},
        },
    )


def draw(rng) -> Subject:
    """Heads, sizes, blocks and their number drawn at random; a state may begin inside a block."""
    kv_heads = int(rng.integers(1, 4))
    return block_sparse_subject(
        heads=kv_heads * int(rng.integers(1, 4)),
        kv_heads=kv_heads,
        key_size=int(rng.choice([3, 8, 32])),
        value_size=int(rng.choice([1, 8])),
        block=int(rng.choice([1, 2, 5, 16, 40])),
        top_k=int(rng.choice([1, 2, 3, 5, 100])),
        slots=int(rng.integers(1, 20)),
        position=int(rng.integers(0, 9)),
    )


SUBJECTS = {"block_sparse": draw}


def one_block_less(*args, top_k, original=chunked.attention, **kwargs):
    return original(*args, top_k=top_k - 1, **kwargs)


def slots_dropped(q, k, v, ids, positions, original=chunked.attention, **kwargs):
    return original(q, k, v, ids.at[:, : ids.shape[1] - q.shape[1]].set(0), positions, **kwargs)


def own_block_ranked(q, k, blocks, others, block, original=chunked._choose):
    return original(q, k, blocks._replace(last_BT=blocks.last_BT + 1), others, block)


def documents_ranked_together(q, k, blocks, others, block, original=chunked._choose):
    return original(q, k, blocks._replace(first_BT=0 * blocks.first_BT), others, block)


def lse_gradient_ignored(static, residuals, cotangents, original=chunked._backward):
    return original(static, residuals, (cotangents[0], jnp.zeros_like(cotangents[1])))


subject = block_sparse_subject()
FAULTS = {
    "boundary dropped": boundary_dropped(subject),
    "NaN spreads": not_contained(subject),
    "one block less": Fault(block_sparse._FORMS, "chunked", one_block_less, forms(subject)),
    "state dropped": Fault(block_sparse._FORMS, "chunked", slots_dropped, split(subject)),
    "own block ranked": Fault(chunked, "_choose", own_block_ranked, causal(subject)),
    "other documents ranked": Fault(chunked, "_choose", documents_ranked_together, packed(subject)),
    "dlse ignored": Fault(chunked._chosen, "bwd", lse_gradient_ignored, forms(subject)),
}
