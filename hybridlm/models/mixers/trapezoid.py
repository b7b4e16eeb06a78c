"""The recurrence of Mamba-3 (arXiv 2603.15569) in one pass of gated linear attention.

With a decay a_t, a rotation R_t of the state's rows by the angles t_t, a step dt_t and a weight l_t,

    h_t = a_t R_t (h_{t-1} + (1 - l_t) dt_t B_{t-1} x_{t-1}^T) + l_t dt_t B_t x_t^T,    y_t = h_t^T C_t

(exponential-trapezoidal discretisation, sec. 3.1; complex states as rotations, sec. 3.2). Without its last
term the state is S_t = a_t R_t (S_{t-1} + c_t B_{t-1} x_{t-1}^T), c_t = l_{t-1} dt_{t-1} + (1 - l_t) dt_t:
what is written at t is the token before. So y_t is one pass of gated linear attention over inputs that are
shifted by a token, plus the last term, which C_t and B_t of the same token give directly. With l = 1 and no
angles it is Mamba-2.

Rotations commute, so C_t is rotated by minus the sum of all angles up to t, B_s by that up to s, and the
state not at all. The sums are integers, fractions of a turn modulo one: differences are exact at any
length, and so no document sees the angles of those before it.

With rank R (sec. 3.3) a token has R inputs B_r x_r^T and R outputs C_r. Its R steps of gated linear
attention write one input and read one output each, so output r lacks the inputs of the token before with
numbers above r: these R (R - 1) / 2 products are added like those of the own token.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybridlm.models.norms import at_least_float32
from hybridlm.parallel import ops
from kernels_pallas import gated_linear
from kernels_pallas.context import delay


class Inputs(NamedTuple):
    """What the recurrence reads, R inputs and outputs a token; F angles rotate the rows (f, F + f).

    Attributes:
      c_BTHRN, b_BTHRN: C and B of each head, any floating dtype; the first 2 F rows of a state rotate.
      x_BTHRP: the values, at least float32, as are all others.
      log_decay_BTH: log a_t <= 0.
      step_BTH: dt_t.
      weight_BTH: l_t, in [0, 1].
      angle_BTHF: the angles of R_t, in radians.
    """

    c_BTHRN: jax.Array
    b_BTHRN: jax.Array
    x_BTHRP: jax.Array
    log_decay_BTH: jax.Array
    step_BTH: jax.Array
    weight_BTH: jax.Array
    angle_BTHF: jax.Array


class LastToken(NamedTuple):
    """The token before: B and x, l dt, and its segment id, 0 for none."""

    b_BHRN: jax.Array
    x_BHRP: jax.Array
    written_BH: jax.Array
    segment_ids_B: jax.Array


class TrapezoidState(NamedTuple):
    """S of the last token, in that token's own frame, and what it has not yet been written of it."""

    memory: gated_linear.GatedLinearState
    last: LastToken


def empty_state(
    batch: int, heads: int, rank: int, state_dim: int, head_dim: int, dtype: jnp.dtype
) -> TrapezoidState:
    """The state before any token."""
    return TrapezoidState(
        gated_linear.empty_state(batch, heads, state_dim, head_dim, dtype),
        LastToken(
            jnp.zeros((batch, heads, rank, state_dim), dtype),
            jnp.zeros((batch, heads, rank, head_dim), dtype),
            jnp.zeros((batch, heads), dtype),
            jnp.zeros((batch,), jnp.int32),
        ),
    )


def trapezoid(
    inputs: Inputs, ids_BT: jax.Array, state: TrapezoidState | None
) -> tuple[jax.Array, TrapezoidState]:
    """(y_BTHRP, the state after the last token) of the recurrence, in each document."""
    c_BTHRN, b_BTHRN, x_BTHRP = inputs[:3]
    batch, time, heads, rank, size = b_BTHRN.shape
    dtype = x_BTHRP.dtype
    memory = None if state is None else state.memory  # what the op makes itself is not checked
    if state is None:
        state = empty_state(batch, heads, rank, size, x_BTHRP.shape[-1], dtype)

    sums_BTHF = _sums_of_angles(inputs.angle_BTHF, ids_BT)
    q_BTHRN = _rotated(c_BTHRN, -sums_BTHF[:, :, :, None])
    k_BTHRN = _rotated(b_BTHRN, -sums_BTHF[:, :, :, None])
    written_BTH = inputs.weight_BTH * inputs.step_BTH
    own = LastToken(k_BTHRN, x_BTHRP, written_BTH, ids_BT)
    before, is_known_BT = _token_before(own, state.last, ids_BT)

    coefficient_BTH = before.written_BH + (1 - inputs.weight_BTH) * inputs.step_BTH
    coefficient_BTH = coefficient_BTH * jnp.exp(inputs.log_decay_BTH)
    is_known_BT11 = is_known_BT[:, :, None, None]
    u_BTHRP = jnp.where(
        is_known_BT11[..., None], coefficient_BTH[..., None, None] * before.x_BHRP, 0
    )
    read_BTHRP, memory = _read(q_BTHRN, before.b_BHRN, u_BTHRP, inputs, ids_BT, memory)

    own_BTHRR = _scores(q_BTHRN, k_BTHRN, dtype) * written_BTH[..., None, None]
    y_BTHRP = read_BTHRP + _weighted(own_BTHRR, x_BTHRP)
    if rank > 1:
        missed_BTHRP = _missed(q_BTHRN, before.b_BHRN, u_BTHRP)
        y_BTHRP += jnp.where(is_known_BT11[..., None], missed_BTHRP, 0)

    # The state leaves in the frame of the last token, in which the next call's sums begin at 0.
    end_BHF = sums_BTHF[:, -1]
    s_BHNP = jnp.swapaxes(_rotated(jnp.swapaxes(memory.s_BHKV, 2, 3), end_BHF[:, :, None]), 2, 3)
    last = LastToken(
        b_BTHRN[:, -1].astype(state.last.b_BHRN.dtype),
        x_BTHRP[:, -1],
        written_BTH[:, -1],
        ids_BT[:, -1],
    )
    return y_BTHRP, TrapezoidState(memory._replace(s_BHKV=s_BHNP), last)


def _read(q_BTHRN, k_BTHRN, u_BTHRP, inputs: Inputs, ids_BT, memory):
    """One pass over R steps a token, of which the first decays."""
    batch, time, heads, rank, _ = q_BTHRN.shape

    def steps(x_BTHR):
        return jnp.swapaxes(x_BTHR, 2, 3).reshape(batch, time * rank, heads, *x_BTHR.shape[4:])

    is_first_R = jnp.arange(rank) == 0
    log_decay_BTHR = jnp.where(is_first_R, inputs.log_decay_BTH[..., None], 0)
    y_BSHP, memory = ops.gated_linear(
        steps(q_BTHRN),
        steps(k_BTHRN),
        steps(u_BTHRP),
        steps(log_decay_BTHR),
        segment_ids=jnp.repeat(ids_BT, rank, axis=1),
        initial_state=memory,
        return_state=True,
    )
    y_BTRHP = y_BSHP.reshape(batch, time, rank, heads, -1)
    return jnp.swapaxes(y_BTRHP, 2, 3), memory


def _missed(q_BTHRN, before_BTHRN, u_BTHRP):
    """What `_read` leaves out: the inputs of the token before with numbers above the output's."""
    return _weighted(jnp.triu(_scores(q_BTHRN, before_BTHRN, u_BTHRP.dtype), 1), u_BTHRP)


def _token_before(
    own: LastToken, last: LastToken, ids_BT: jax.Array
) -> tuple[LastToken, jax.Array]:
    """Each token's predecessor, (B, T, ...), and whether that is of its own document."""
    delayed = _delay(own, 1)
    is_first_T = jnp.arange(ids_BT.shape[1]) == 0

    def one(x_BT: jax.Array, first_B: jax.Array) -> jax.Array:
        is_first = is_first_T.reshape(1, -1, *[1] * (x_BT.ndim - 2))
        return jnp.where(is_first, first_B[:, None].astype(x_BT.dtype), x_BT)

    before = jax.tree.map(one, delayed, last)
    is_known_BT = (before.segment_ids_B == ids_BT) & (ids_BT != 0)

    def known(x_BT: jax.Array) -> jax.Array:
        return jnp.where(is_known_BT.reshape(*is_known_BT.shape, *[1] * (x_BT.ndim - 2)), x_BT, 0)

    return jax.tree.map(known, before), is_known_BT


_DELAYED = LastToken("BTH--", "BTH--", "BTH", "BT")
_delay = ops.per_shard(delay, delay, dict(tokens=_DELAYED), (_DELAYED,))


def _scores(c_BTHRN, b_BTHRN, dtype) -> jax.Array:
    """C_r . B_s of a token's outputs r and inputs s."""
    return jnp.einsum("bthrn,bthsn->bthrs", c_BTHRN, b_BTHRN, preferred_element_type=dtype)


def _weighted(scores_BTHRS: jax.Array, x_BTHSP: jax.Array) -> jax.Array:
    # A sum over few terms, not a product of matrices: the default precision would round them.
    return jnp.sum(scores_BTHRS[..., None] * x_BTHSP[:, :, :, None], axis=4)


def _rotated(x_N: jax.Array, angle_F: jax.Array) -> jax.Array:
    """Rows (f, F + f) of the last axis rotated by the angle; the rest as it is."""
    pairs = angle_F.shape[-1]
    cos, sin = jnp.cos(angle_F), jnp.sin(angle_F)
    one, two, rest = jnp.split(at_least_float32(x_N), [pairs, 2 * pairs], axis=-1)
    turned = [one * cos - two * sin, one * sin + two * cos]
    return jnp.concatenate([*turned, rest], axis=-1).astype(x_N.dtype)


def _sums_of_angles(angle_BTHF: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """The sum of all angles of the row up to each token, modulo a turn."""
    batch, time, heads, pairs = angle_BTHF.shape
    if pairs == 0:
        return angle_BTHF  # a real state
    # Padding turns nothing, so that its content changes no bit of a later document.
    angle_BTHF = jnp.where((ids_BT == 0)[..., None, None], 0, angle_BTHF)
    flat_BTD = angle_BTHF.reshape(batch, time, heads * pairs)
    return _sums(flat_BTD, ids_BT).reshape(angle_BTHF.shape)


@jax.custom_vjp
def _sums(angle_BTD: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """Values come from integers. Gradients are those of the sums in each document, which differ from
    them by a rotation that no output depends on."""
    return _turns(angle_BTD)


def _sums_forward(angle_BTD: jax.Array, ids_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _turns(angle_BTD), ids_BT


def _sums_backward(ids_BT: jax.Array, dsums_BTD: jax.Array) -> tuple[jax.Array, None]:
    """The sums of all later cotangents in each document: the recurrence with decays of 1, in reverse.

    Over split time, whose states pass from a device to the next, it is the recurrence's gradient; a
    kernel then computes the recurrence's values, too.
    """
    ones_BTD = jnp.ones_like(dsums_BTD)
    if ops.time_is_split():
        sums = functools.partial(ops.linear_recurrence, ones_BTD, segment_ids=ids_BT)
        return *jax.vjp(sums, jnp.zeros_like(dsums_BTD))[1](dsums_BTD), None
    reversed_BTD, reversed_BT = jnp.flip(dsums_BTD, axis=1), jnp.flip(ids_BT, axis=1)
    sums_BTD = ops.linear_recurrence(ones_BTD, reversed_BTD, segment_ids=reversed_BT)
    return jnp.flip(sums_BTD, axis=1), None


_sums.defvjp(_sums_forward, _sums_backward)


def _fixed_point(angle_BTD: jax.Array) -> jax.Array:
    """Fractions of a turn in units of 2^-32 of it (2^-64 in float64), as integers."""
    bits, kind = (64, jnp.int64) if angle_BTD.dtype == jnp.float64 else (32, jnp.int32)
    turns = angle_BTD / (2 * math.pi)
    turns = jnp.where(jnp.isfinite(turns), turns - jnp.round(turns), 0)
    largest = 2.0 ** (bits - 1) * (1 - 2.0 ** (-24 if bits == 32 else -53))
    return jnp.clip(turns * 2.0**bits, -largest, largest).astype(kind)


def _sum_on_one_device(angle_BTD: jax.Array) -> jax.Array:
    return _radians(jnp.cumsum(_fixed_point(angle_BTD), axis=1), angle_BTD.dtype)


def _sum_of_shards(angle_BTD: jax.Array, *, axis: str) -> jax.Array:
    """The same, of this shard's tokens of longer rows: integers wrap around, so the order of sums
    changes no bit."""
    fixed_BTD = jnp.cumsum(_fixed_point(angle_BTD), axis=1)
    ends_PBD = jax.lax.all_gather(fixed_BTD[:, -1], axis)
    is_left_P = jnp.arange(len(ends_PBD)) < jax.lax.axis_index(axis)
    left_BD = jnp.sum(
        jnp.where(is_left_P[:, None, None], ends_PBD, 0), axis=0, dtype=fixed_BTD.dtype
    )
    return _radians(fixed_BTD + left_BD[:, None], angle_BTD.dtype)


def _radians(fixed: jax.Array, dtype: jnp.dtype) -> jax.Array:
    bits = 8 * fixed.dtype.itemsize
    return fixed.astype(dtype) * (2 * math.pi * 2.0**-bits)


_turns = ops.per_shard(_sum_on_one_device, _sum_of_shards, dict(angle_BTD="BTH"), ("BTH",))
