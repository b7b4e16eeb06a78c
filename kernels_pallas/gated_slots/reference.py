"""Gated slot attention token by token: the oracle, differentiated by autodiff."""

import jax
import jax.numpy as jnp


def gated_slots(
    q_BTGRK,
    k_BTGK,
    v_BTGV,
    log_gate_BTGM,
    write_BTGM,
    resets_BT,
    k_slots_BGMK,
    v_slots_BGMV,
    *,
    scale,
    precision,
):
    """(out_BTGRV, lse_BTGR, last k slots, last v slots); at a reset the slots before count as 0."""
    gate_BTGM = jnp.where(resets_BT[:, :, None, None], 0, jnp.exp(log_gate_BTGM))

    def step(slots, token):
        k_slots_BGMK, v_slots_BGMV = slots
        q_BGRK, k_BGK, v_BGV, gate_BGM, write_BGM = token
        gate_BGM1, write_BGM1 = gate_BGM[..., None], write_BGM[..., None]
        k_slots_BGMK = gate_BGM1 * k_slots_BGMK + write_BGM1 * k_BGK[:, :, None]
        v_slots_BGMV = gate_BGM1 * v_slots_BGMV + write_BGM1 * v_BGV[:, :, None]
        logits_BGRM = scale * jnp.einsum(
            "bgrk,bgmk->bgrm", q_BGRK, k_slots_BGMK, precision=precision
        )
        lse_BGR = jax.nn.logsumexp(logits_BGRM, axis=-1)
        p_BGRM = jax.nn.softmax(logits_BGRM, axis=-1)
        out_BGRV = jnp.einsum("bgrm,bgmv->bgrv", p_BGRM, v_slots_BGMV, precision=precision)
        return (k_slots_BGMK, v_slots_BGMV), (out_BGRV, lse_BGR)

    tokens = (q_BTGRK, k_BTGK, v_BTGV, gate_BTGM, write_BTGM)
    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens)
    slots, outs = jax.lax.scan(step, (k_slots_BGMK, v_slots_BGMV), tokens)
    out_BTGRV, lse_BTGR = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), outs)
    return out_BTGRV, lse_BTGR, *slots
