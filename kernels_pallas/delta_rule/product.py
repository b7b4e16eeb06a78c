"""Several updates of a state per token: Gated DeltaProduct (arXiv:2502.10297), RWKV-7 (arXiv:2503.14456).

The state's transition over one token is a product of matrices I - beta k e^T. The delta rule runs over
the updates of all tokens as if they were tokens of their own; the decay comes before a token's first
update, and the output is read after its last one.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels_pallas.delta_rule import DeltaRuleState


def delta_product(
    delta_rule: Callable[..., Any],
    q_BTGK: Float[Array, "B T G K"],
    k_BTNGK: Float[Array, "B T N G K"],
    v_BTNHV: Float[Array, "B T N H V"],
    beta_BTNH: Float[Array, "B T N H"] | None = None,
    log_decay: Float[Array, "B T H"] | Float[Array, "B T H K"] | None = None,
    *,
    erase_BTNGK: Float[Array, "B T N G K"] | None = None,
    segment_ids: Int[Array, "B T"],
    initial_state: DeltaRuleState | None = None,
    return_state: bool = False,
    **options: Any,
) -> Float[Array, "B T H V"] | tuple[Float[Array, "B T H V"], DeltaRuleState]:
    """S <- Diag(a_t) S, S <- S + beta_n k_n (v_n - S^T e_n)^T for n = 1..N in order, o_t = scale S^T q_t.

    It costs what the delta rule costs for N T tokens.

    Arguments:
      delta_rule: `kernels_pallas.delta_rule.delta_rule`, or a function that takes the same arguments
        (the one for a mesh, the one for split time).
      k_BTNGK, v_BTNHV, beta_BTNH, erase_BTNGK: those of each update.
      q_BTGK, log_decay, segment_ids: those of each token.
      initial_state, return_state, options: the delta rule's. Its state is the state here too, so a
        sequence may be split between any two tokens.

    Returns and raises what the delta rule does, and ValueError where arrays differ in B, T or N.
    """
    for name, x in dict(k=k_BTNGK, v=v_BTNHV, beta=beta_BTNH, erase=erase_BTNGK).items():
        if x is not None and (x.ndim < 4 or x.shape[:3] != k_BTNGK.shape[:3]):
            raise ValueError(
                f"delta_product: {name} must have the first axes (B, T, N) of k, "
                f"{k_BTNGK.shape[:3]}, and one or two others, got shape {x.shape}."
            )
    batch, time, count = k_BTNGK.shape[:3]

    def flat(x_BTN):
        return None if x_BTN is None else x_BTN.reshape(batch, time * count, *x_BTN.shape[3:])

    def at(number: int, x_BT):
        """x at one update of each token, zeros at the others."""
        if x_BT is None:
            return None
        around = ((0, 0), (0, 0), (number, count - 1 - number)) + ((0, 0),) * (x_BT.ndim - 2)
        return flat(jnp.pad(x_BT[:, :, None], around))

    out = delta_rule(
        at(count - 1, q_BTGK),
        flat(k_BTNGK),
        flat(v_BTNHV),
        flat(beta_BTNH),
        at(0, log_decay),
        erase_BTGK=flat(erase_BTNGK),
        segment_ids=jnp.repeat(segment_ids, count, axis=1),
        initial_state=initial_state,
        return_state=return_state,
        **options,
    )
    o, *state = out if return_state else (out,)
    o_BTHV = o.reshape(batch, time, count, *o.shape[2:])[:, :, -1]
    return (o_BTHV, *state) if return_state else o_BTHV
