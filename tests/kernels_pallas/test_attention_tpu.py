"""The laws for the TPU attention kernels, interpreted with tiles of 8 tokens, blocks of 16 or 32."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import check_against_float64, errors, kernels, kernels_read_again
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from rounding import dots_rounded
from subjects.attention import attention_subject

from kernels_pallas import attention as attn
from kernels_pallas import mxu, testing
from kernels_pallas.attention import tpu, tpu_kernels, tpu_nonfinite
from kernels_pallas.testing import draw_segment_ids

# A band within a tile, a band of tiles, a loop over blocks, full: each with other options.
SUBJECTS = {
    "band of a tile": dict(window=5, heads=2, kv_heads=1),
    "band of tiles": dict(window=14, sinks=True),
    "loop": dict(window=40, soft_cap=5.0, heads=2, kv_heads=2),
    "loop, no edge": dict(window=33, heads=3, kv_heads=1, sinks=True),
    "full": dict(window=None, sinks=True, soft_cap=5.0),
    "forgetful band": dict(window=14, sinks=True, decay=0.3),
    "forgetful loop": dict(window=33, heads=3, kv_heads=1, sinks=True, decay=0.3),
    "forgetful": dict(window=None, decay=0.05),
}
FAST = (("q", -np.inf), ("k", np.inf), ("v", -np.inf))
by_kind = pytest.mark.parametrize("kind", SUBJECTS)


def mostly_slow(*kinds):
    """The first kind by default, the others with the slow tests: each takes seconds to compile."""
    rest = (pytest.param(kind, marks=pytest.mark.slow) for kind in kinds[1:])
    return pytest.mark.parametrize("kind", [kinds[0], *rest])


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(
        tpu, "BLOCK_SIZES", tpu.BlockSizes(slice=8, tile=8, block=16, short=32, size=4)
    )
    with kernels():
        yield


def rng(seed=0):
    return np.random.default_rng(seed)


@mostly_slow("loop", *(kind for kind in SUBJECTS if kind != "loop"))
def test_kernel_is_the_reference(kind):
    subject = attention_subject(**SUBJECTS[kind])
    ids = draw_segment_ids(rng(), 2, 75)
    check_against_float64(subject, rng(), 2, 75, ids, with_state=kind != "full")


@pytest.mark.parametrize("time", [1, 15, 16, 63, 127])
@pytest.mark.slow
@by_kind
def test_kernel_is_the_reference_at_any_length(kind, time):
    subject = attention_subject(**SUBJECTS[kind])
    ids = draw_segment_ids(rng(time), 2, time)
    check_against_float64(subject, rng(time), 2, time, ids, with_state=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in SUBJECTS if kind != "full"])
def test_nan_and_infinity_reach_no_other_document(kind):
    """Law 8, on planted values of several draws: keys, values, queries, padding, a state."""
    subject = attention_subject(**SUBJECTS[kind])
    for seed in range(6):
        ids = draw_segment_ids(rng(seed), 2, 75, padding=0.2)
        testing.check_contained(
            subject, rng(seed), 2, 75, 41, ids, jnp.float32, 1e-5, "pallas", with_state=True
        )


@pytest.mark.parametrize(
    "name, value",
    [
        pytest.param(name, value, marks=() if (name, value) in FAST else pytest.mark.slow)
        for name in ("q", "k", "v", "out", "lse")
        for value in (np.nan, np.inf, -np.inf)
    ],
)
def test_full_attention_contains_a_number_that_is_not_finite(name, value, monkeypatch):
    """Token 20 of 64 is in the second document of three; the last tokens are padding. Keys and values
    are marked in several pieces, as those of 256 channels are."""
    monkeypatch.setattr(tpu_nonfinite, "ROWS", 2)
    ids = jnp.asarray(np.repeat([1, 2, 3, 0], [13, 27, 19, 5])[None])
    sinks = jnp.asarray([0.3, -0.2], jnp.float32)
    draw = rng()

    def normal(heads):
        return jnp.asarray(draw.standard_normal((1, 64, heads, 4)), jnp.float32)

    def planted(x):
        return x.at[(0, 20) + (0,) * (x.ndim - 2)].set(value)

    inputs = dict(q=normal(2), k=normal(1), v=normal(1))
    cotangents = dict(out=normal(2), lse=normal(2)[..., 0])

    @jax.jit
    def run(inputs, cotangents):
        def op(inputs):
            options = dict(segment_ids=ids, sinks_H=sinks, soft_cap=5.0, impl="pallas")
            out, lse = attn.attention(inputs["q"], inputs["k"], inputs["v"], **options)
            return dict(out=out, lse=lse)

        outputs, pull = jax.vjp(op, inputs)
        return outputs, pull(cotangents)[0]

    was = run(inputs, cotangents)
    chosen = {n: planted(x) if n == name else x for n, x in inputs.items()}
    outputs, _ = run(chosen, cotangents)
    spoilt = {n: jnp.where(jnp.isfinite(outputs[n]), c, jnp.nan) for n, c in cotangents.items()}
    spoilt = {n: planted(c) if n == name else c for n, c in spoilt.items()}
    found = run(chosen, spoilt)
    other = np.asarray(ids[0] != 2)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(was), strict=True):
        np.testing.assert_allclose(np.asarray(x)[0, other], np.asarray(y)[0, other], 1e-5, 1e-6)
    if name in inputs:  # nothing is hidden, by a sink or a cap either
        seen = slice(20, 21) if name == "q" else slice(20, 40)
        first_head = np.asarray(found[0]["out"])[0, seen, 0]
        assert np.isnan(first_head).all()
        assert np.isfinite(np.asarray(found[0]["out"])[0, 13:20]).all()
    else:
        assert np.isnan(np.asarray(found[1]["q"])[0, 20]).any()


def test_wider_matrix_unit(monkeypatch):
    """From v6e on products are two tiles wide: here two units of 16 in a block of 32."""
    monkeypatch.setattr(mxu, "tiles", lambda: 2)
    monkeypatch.setattr(
        tpu, "BLOCK_SIZES", tpu.BlockSizes(slice=8, tile=8, block=32, short=64, size=4)
    )
    subject = attention_subject(**SUBJECTS["loop"])
    check_against_float64(subject, rng(), 2, 139, draw_segment_ids(rng(), 2, 139))


@pytest.mark.parametrize("time", [107, pytest.param(24, marks=pytest.mark.slow)])
@pytest.mark.parametrize("value_size", [128, pytest.param(8, marks=pytest.mark.slow)])
def test_several_pairs_of_units(monkeypatch, time, value_size):
    """Units of 8 in blocks of 32, or of 24; values of 128 are added before the last logits."""
    monkeypatch.setattr(
        tpu, "BLOCK_SIZES", tpu.BlockSizes(slice=8, tile=8, block=32, short=64, size=4)
    )
    subject = attention_subject(**SUBJECTS["loop"], value_size=value_size)
    ids = draw_segment_ids(rng(), 1, time)
    check_against_float64(subject, rng(), 1, time, ids, with_state=True)


def test_schedule():
    """Logits and values of every part are computed once, values after all logits of their queries."""
    plan = tpu.make_plan(1000, 0, None, 1.0, None, mxu.Precision.DEFAULT)
    for value_size in (64, 128):
        schedule, units = plan.schedule(value_size), plan.block // plan.unit
        for queries in range(0, plan.block, plan.unit):
            own = [(task, part.key) for task, part in schedule if part.query == queries]
            keys = range(0, plan.block, plan.unit)
            assert own == [(task, key) for task in ("logits", "values") for key in keys]
        assert len(schedule) == 2 * units**2


@mostly_slow("band of tiles", "loop", "forgetful band", "forgetful loop", "forgetful")
def test_packed_is_separate(kind):
    subject = attention_subject(**SUBJECTS[kind])
    testing.check_packed(subject, rng(), [1, 37, 37], [0, 3, 0], jnp.float32, 1e-5, impl="pallas")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["band of tiles", "loop", "forgetful band", "forgetful loop"])
def test_split_is_whole(kind):
    subject, ids = attention_subject(**SUBJECTS[kind]), draw_segment_ids(rng(), 1, 40, padding=0)
    testing.check_split(
        subject, rng(), 1, 40, [21], ids, jnp.float32, 1e-5, impl="pallas", with_state=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 14])
def test_gates_of_a_document_cost_the_next_one_no_digits(window):
    """A document of gates e^-5000 ends within a query block."""
    q, k, v = (testing.normal(rng(), (1, 40, 2, 4), jnp.float32) for _ in range(3))
    ids = 1 + (jnp.arange(40) > 20).astype(jnp.int32)[None]
    gates = -0.1 * rng().exponential(size=(1, 40, 2)).astype(np.float32)
    gates[:, :21] = -5000
    options = dict(segment_ids=ids, window=window, log_forget_BTH=jnp.asarray(gates))
    found = [
        jax.jit(lambda impl=impl: attn.attention(q, k, v, impl=impl, **options))()
        for impl in ("pallas", "reference")
    ]
    testing.assert_close("next", *([x[:, 21:] for x in xs] for xs in found), 1e-6)


@mostly_slow("full", "band of tiles", "forgetful")
def test_causal(kind):
    subject, ids = attention_subject(**SUBJECTS[kind]), draw_segment_ids(rng(1), 2, 40)
    testing.check_causal(subject, rng(), 2, 40, 19, ids, impl="pallas")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loop", "forgetful loop"])
def test_finite(kind):
    subject, ids = attention_subject(**SUBJECTS[kind]), draw_segment_ids(rng(), 1, 63)
    testing.check_finite(subject, rng(), 1, 63, impl="pallas", segment_ids=ids)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["band of tiles", "forgetful loop", "forgetful"])
def test_deterministic(kind):
    subject = attention_subject(**SUBJECTS[kind])
    testing.check_deterministic(subject, rng(), 1, 40, impl="pallas")


@mostly_slow("band of a tile", "loop")
def test_uninitialised_memory_and_races(kind):
    """Uninitialised memory is NaN, and races are detected."""
    subject = attention_subject(**SUBJECTS[kind])
    with kernels(pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")):
        check_against_float64(subject, rng(), 1, 40, draw_segment_ids(rng(2), 1, 40))
    assert not interpret_pallas_call.races.races_found


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.slow)])
def test_rounded_as_on_a_chip(dtype):
    """The error against float64 is at most 1.5 times that of the chunked form: with bf16 inputs its
    error on a CPU, whose products are exact; with float32 inputs its error on a chip, which rounds
    them to bf16."""
    subject = attention_subject(window=40, heads=2, kv_heads=2, key_size=32, value_size=32)
    ids = draw_segment_ids(rng(), 2, 130, padding=0)

    def worst(impl, rounding):
        with kernels(precision="default"), rounding:
            want, (got,) = errors(subject, rng(), 2, 130, ids, False, (impl,), dtype)
        return [testing.error(x, y) for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want))]

    as_on_a_chip = dots_rounded() if dtype == jnp.float32 else contextlib.nullcontext()
    ours, chunked = worst("pallas", contextlib.nullcontext()), worst("chunked", as_on_a_chip)
    for got, allowed in zip(ours, chunked):
        assert got <= 1.5 * allowed + 1e-6, (ours, chunked)


def gates_not_added(self, logits, part):
    return logits


def sums_of_queries_dropped(self, gates, original=tpu._Layout.gates_since):
    return jnp.zeros_like(original(self, gates))


def sums_of_keys_not_differentiated(self, drow, dcolumn, original=tpu._Layout.from_gates):
    return original(self, drow, jnp.zeros_like(dcolumn))


@pytest.mark.slow
@pytest.mark.parametrize(
    "where, name, replacement",
    [
        (tpu_kernels.Gates, "add", gates_not_added),
        (tpu._Layout, "gates_since", sums_of_queries_dropped),
        (tpu._Layout, "from_gates", sums_of_keys_not_differentiated),
    ],
)
def test_planted_faults_of_forget_gates_are_caught(where, name, replacement, monkeypatch):
    monkeypatch.setattr(where, name, replacement)
    subject = attention_subject(**SUBJECTS["forgetful band"])
    with pytest.raises(AssertionError, match="off by"):
        check_against_float64(subject, rng(), 1, 40, draw_segment_ids(rng(2), 1, 40))


def test_auto_takes_the_kernel_on_a_tpu_only():
    shape = jnp.zeros((1, 16, 2, 8), jnp.bfloat16)

    def text():
        return str(jax.make_jaxpr(lambda x: attn.attention(x, x, x, window=4))(shape))

    assert "pallas_call" in text()
    with attn.dispatch.kernels_for("cpu"):
        assert "pallas_call" not in text()


def test_a_call_with_forget_gates_that_does_not_fit_vmem_runs_in_spans():
    long = jax.ShapeDtypeStruct((1, 2**17, 2, 128), jnp.bfloat16)
    gates = jax.ShapeDtypeStruct((1, 2**17, 2), jnp.float32)

    def run(**options):
        def op(x, gates):
            return attn.attention(x, x, x, log_forget_BTH=gates, **options)

        return str(jax.make_jaxpr(op)(long, gates))

    assert "attention_forward_older" in run()  # chosen without being named
    near = run(window=2048)
    assert "attention_forward" in near and "attention_forward_older" not in near


def test_saved_names_spare_the_forward_kernel_in_the_backward_pass():
    """With a remat policy that keeps the two names, no output of the recomputed kernel is read."""
    policy = jax.checkpoint_policies.save_only_these_names("attention_out", "attention_lse")
    x = jnp.ones((1, 32, 2, 4), jnp.float32)

    @functools.partial(jax.checkpoint, policy=policy)
    def loss(x):
        out, lse = attn.attention(x, x, x, impl="pallas")
        return jnp.sum(out) + jnp.sum(lse)

    read = kernels_read_again(loss, x)
    assert read == {"attention_forward": False, "attention_backward": True}
