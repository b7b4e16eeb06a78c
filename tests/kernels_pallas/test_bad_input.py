"""Bad input raises an error of one sentence, the same in every op."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import (
    attention,
    block_sparse,
    causal_conv,
    delta_rule,
    gated_linear,
    gated_slots,
    linear_recurrence,
    selective_scan,
)

SIZES = dict(B=2, T=5, S=3, G=2, H=4, K=3, V=6, M=2, D=4, W=3, N=3)
BLOCKS = dict(block=2, top_k=2)

#: Each op, the axes of its arrays, its other arguments, and the type of its state.
OPS = {
    "attention": (attention.attention, "BTHK BTGK BTGV", {}, attention.AttentionState),
    "block_sparse": (
        block_sparse.block_sparse_attention,
        "BTHK BTGK BTGV",
        BLOCKS,
        block_sparse.BlockSparseState,
    ),
    "causal_conv": (causal_conv.causal_conv, "BTD WD D", {}, causal_conv.ConvState),
    "delta_rule": (delta_rule.delta_rule, "BTGK BTGK BTHV BTH BTHK", {}, delta_rule.DeltaRuleState),
    "gated_linear": (
        gated_linear.gated_linear,
        "BTGK BTGK BTHV BTH",
        {},
        gated_linear.GatedLinearState,
    ),
    "gated_slots": (gated_slots.gated_slots, "BTHK BTGK BTGV BTGM", {}, gated_slots.SlotState),
    "gated_recurrence": (
        linear_recurrence.gated_recurrence,
        "BTD BTD",
        {},
        linear_recurrence.RecurrenceState,
    ),
    "linear_recurrence": (
        linear_recurrence.linear_recurrence,
        "BTD BTD",
        {},
        linear_recurrence.RecurrenceState,
    ),
    "selective_scan": (
        selective_scan.selective_scan,
        "BTD BTD DN BTN BTN",
        {},
        selective_scan.SelectiveScanState,
    ),
}
#: The ops for one token, which have neither segment ids nor states.
OF_ONE_TOKEN = {
    "decode_attention": (
        attention.decode_attention,
        "BHK BSGK BSGV",
        dict(valid_BS=np.ones((2, 3), bool)),
    ),
    "decode_block_sparse": (
        block_sparse.decode_block_sparse_attention,
        "BHK BSGK BSGV BNGK",
        BLOCKS | dict(first_B=np.zeros(2, np.int32), position_B=np.zeros(2, np.int32)),
    ),
}
ALL = {name: row[:3] for name, row in OPS.items()} | OF_ONE_TOKEN
UNSCALED = {"causal_conv", "gated_recurrence", "linear_recurrence", "selective_scan"}
SCALED = sorted(ALL.keys() - UNSCALED)
DIMENSIONS = [
    (name, letter) for name, (_, dims, _) in ALL.items() for letter in sorted(set(dims) - {" "})
]


def shape(dims, sizes=SIZES):
    return tuple(sizes[letter] for letter in dims)


def call(name, sizes=SIZES, **options):
    op, dims, others = ALL[name]
    return op(*(jnp.zeros(shape(x, sizes)) for x in dims.split()), **{**others, **options})


def state(name, **changes):
    """A state of zeros whose tokens belong to document 1."""
    kind, sizes = OPS[name][3], dict(SIZES, S=SIZES["W"] - 1)
    whole = dict(segment_ids=jnp.int32, positions=jnp.int32, written=bool)
    arrays = {}
    for field in kind._fields:
        what, dims = field.rsplit("_", 1)
        arrays[field] = jnp.ones(shape(dims, sizes), whole.get(what, jnp.float32))
    return kind(**arrays | {n: x.astype(changes[n]) for n, x in arrays.items() if n in changes})


@pytest.mark.parametrize("name, letter", DIMENSIONS)
def test_a_dimension_of_size_0(name, letter):
    sentences = (
        f"no dimension of size 0|a multiple of|{letter} >= 1|in 1..8|means_BNGK must have shape"
    )
    with pytest.raises(ValueError, match=sentences):
        call(name, SIZES | {letter: 0})


@pytest.mark.parametrize("name", OPS)
def test_a_state_is_of_the_op_and_of_its_dtypes(name):
    jax.eval_shape(lambda state: call(name, initial_state=state), state(name))
    with pytest.raises(ValueError, match=f"initial_state must be a {OPS[name][3].__name__}, or"):
        call(name, initial_state=tuple(state(name)))
    for field in OPS[name][3]._fields:
        what = field.rsplit("_", 1)[0]
        if what in ("segment_ids", "positions"):
            wrong, right = (jnp.float32, bool), "integers"
        else:
            wrong = (jnp.int32,)
            right = "booleans" if what == "written" else "floating point"
        for dtype in wrong:
            with pytest.raises(ValueError, match=f"initial_state.{field} must be {right}"):
                call(name, initial_state=state(name, **{field: dtype}))


@pytest.mark.parametrize("name", OPS)
def test_ids_of_64_bits_are_refused_not_truncated(name, x64):
    # Truncated to 32 bits, 2^32 would be padding and 2^32 + 1 the same document as 1.
    for dtype in (jnp.int64, jnp.uint64):
        ids_BT = jnp.ones(shape("BT"), dtype)
        with pytest.raises(ValueError, match="segment_ids must be integers of at most 32 bits"):
            call(name, segment_ids=ids_BT)
    (field,) = (f for f in OPS[name][3]._fields if f.startswith("segment_ids"))
    with pytest.raises(ValueError, match=f"{field} must be integers of at most 32 bits"):
        call(name, initial_state=state(name, **{field: jnp.int64}))


@pytest.mark.parametrize("name", SCALED)
def test_a_scale_is_a_finite_python_number(name):
    for wrong in (jnp.float32(2), jnp.ones(()), np.float32(2), "2"):
        with pytest.raises(ValueError, match="scale must be None or a Python number"):
            call(name, scale=wrong)
    for wrong in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="scale must be a finite number"):
            call(name, scale=wrong)


@pytest.mark.parametrize("name", ["attention", "decode_attention"])
def test_a_soft_cap_is_a_positive_python_number(name):
    for wrong, message in (
        (
            float("inf"),
            "soft_cap must be a finite number",
        ),  # not a way to say "no cap": inf * tanh(0) is NaN
        (jnp.float32(2), "soft_cap must be None or a Python number"),
        (-1.0, "soft_cap must be None or > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call(name, soft_cap=wrong)


@pytest.mark.parametrize("name", SCALED)
def test_a_scale_of_numpy_makes_no_float64(name, x64):
    op, dims, others = ALL[name]
    arrays = [jnp.zeros(shape(x), jnp.float32) for x in dims.split()]

    def dtypes(scale):
        out = jax.eval_shape(lambda *arrays: op(*arrays, **others, scale=scale), *arrays)
        return [x.dtype for x in jax.tree.leaves(out)]

    assert dtypes(np.float64(0.5)) == dtypes(0.5) == [jnp.float32] * len(dtypes(0.5))


RECURRENT = sorted(OPS.keys() - {"attention", "block_sparse", "causal_conv"})


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("name", RECURRENT)
def test_a_state_of_another_document_is_not_read(name, impl):
    """A decay of 0 would not be enough: one sequence that overflowed would spoil the next ones."""
    op, dims, others, _ = OPS[name]
    arrays = [jnp.full(shape(x), -0.1) for x in dims.split()]
    ids_BT = jnp.asarray([[2, 2, 2, 2, 2], [0, 0, 1, 1, 1]], jnp.int32)

    @jax.jit
    @jax.value_and_grad
    def run(arrays, value):
        foreign = jax.tree.map(
            lambda x: value * x if jnp.issubdtype(x.dtype, jnp.floating) else x, state(name)
        )
        out = op(
            *arrays,
            **others,
            segment_ids=ids_BT,
            initial_state=foreign,
            return_state=True,
            impl=impl,
        )
        return sum(jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(out) if x.dtype == jnp.float32)

    for got, want in zip(*(jax.tree.leaves(run(arrays, x)) for x in (jnp.nan, 0.0)), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("eps", [0, -1e-6])
def test_lengths_need_a_positive_number(eps):
    """Padding to whole chunks is zeros, whose length is 0."""
    arrays = [jnp.zeros(shape(x)) for x in OPS["delta_rule"][1].split()]
    with pytest.raises(ValueError, match="unit_eps must be above 0"):
        delta_rule.delta_rule(*arrays, unit_eps=eps)
