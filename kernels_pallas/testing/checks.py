"""The laws that every sequence op and every mixer must obey, as reusable checks."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.testing.subject import (
    Subject,
    Tree,
    assert_close,
    draw_cotangents,
    draw_segment_ids,
    floats,
    like,
    nan_is_inf,
    runner,
)


def check_forms(
    subject: Subject,
    rng,
    batch: int,
    time: int,
    dtype=jnp.float64,
    tolerance: float = 1e-10,
    segment_ids=None,
    with_state: bool = True,
    impl: str = "chunked",
    oracle: str = "reference",
) -> None:
    """Law 1: `impl` equals `oracle` in outputs, final state and every gradient."""
    inputs, params = subject.inputs(rng, batch, time, dtype), subject.params(rng, dtype)
    state = subject.state(rng, batch, dtype) if with_state else None
    cotangents = draw_cotangents(rng, subject, oracle, inputs, params, segment_ids, state)
    results = [
        runner(subject, form)(inputs, params, segment_ids, state, cotangents)
        for form in (impl, oracle)
    ]
    assert_close(f"{subject.name}: {impl} = {oracle}", *results, tolerance)


def check_bfloat16(
    subject: Subject,
    rng,
    batch: int,
    time: int,
    segment_ids=None,
    with_state: bool = True,
    factor: float = 1.5,
    impl: str = "chunked",
    baseline: str = "reference",
) -> None:
    """Law 1 in bfloat16: with bfloat16 inputs (parameters and states are float32) the root mean square
    error of `impl` against float64 is at most `factor` times that of `baseline`, for the outputs, the
    final state, and the gradients of inputs, of parameters and of the state."""
    inputs, params = (
        subject.inputs(rng, batch, time, jnp.bfloat16),
        subject.params(rng, jnp.float32),
    )
    state = subject.state(rng, batch, jnp.bfloat16) if with_state else None
    cotangents = draw_cotangents(rng, subject, baseline, inputs, params, segment_ids, state)
    draw = inputs, params, segment_ids, state, cotangents
    found = [runner(subject, form)(*draw) for form in (impl, baseline)]
    exact = runner(subject, baseline)(*jax.tree.map(_widened, draw))
    for part, want in _parts(exact).items():
        mine, other = (_rms_error(_parts(x)[part], want) for x in found)
        if not mine <= factor * other + 1e-6:
            raise AssertionError(
                f"{subject.name}: {part} in bfloat16: {impl} off by {mine:.2e} (rms),"
                f" {baseline} by {other:.2e}"
            )


def _parts(result: dict) -> dict[str, Tree]:
    names = ("of inputs", "of parameters", "of the state")
    gradients = {f"gradient {n}": g for n, g in zip(names, result["gradients"], strict=True)}
    return {"outputs": result["outputs"], "final state": floats(result["final"])[0]} | gradients


def _widened(x):
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _rms_error(got: Tree, want: Tree) -> float:
    """Over all entries of all leaves, each leaf relative to its own root mean square."""
    squares = [
        np.square((np.asarray(x, np.float64) - y) / max(1e-3, np.sqrt(np.mean(np.square(y)))))
        for x, y in zip(jax.tree.leaves(got), map(np.asarray, jax.tree.leaves(want)), strict=True)
        if y.size
    ]
    return nan_is_inf(np.sqrt(np.mean(np.concatenate([s.ravel() for s in squares] or [[0.0]]))))


def compiled(op: Callable) -> Callable:
    """`op` as one jitted function, with all arguments static that are not arrays.

    A call without `jax.jit` compiles every operation separately, which takes longer.
    """

    @functools.cache
    def program(**known):
        return jax.jit(functools.partial(op, **known))

    def run(*arrays, **options):
        traced = {n: x for n, x in options.items() if isinstance(x, jax.Array | tuple)}
        known = {n: x for n, x in options.items() if n not in traced}
        return program(**known)(*arrays, **traced)

    return run


def check_packed(
    subject: Subject,
    rng,
    lengths: Sequence[int],
    gaps: Sequence[int] | None = None,
    dtype=jnp.float64,
    tolerance: float = 1e-10,
    impl: str = "chunked",
) -> None:
    """Law 2: documents of `lengths`, packed into one row with `gaps[i]` padded tokens after document i,
    have the same outputs and gradients as each in a row of its own.

    Both batches have the same shape, filled with padding, so that one program runs them.
    """
    gaps = [0] * len(lengths) if gaps is None else gaps
    rows, time = len(lengths), sum(lengths) + sum(gaps)
    params, inputs = subject.params(rng, dtype), subject.inputs(rng, rows, time, dtype)
    filler = subject.inputs(rng, rows, time, dtype)
    ids_alone = jnp.asarray(np.arange(time) < np.asarray(lengths)[:, None], jnp.int32)

    ids_packed, spans, at = np.zeros((rows, time), np.int32), [], 0
    for number, (length, gap) in enumerate(zip(lengths, gaps, strict=True)):
        spans.append(slice(at, at + length))
        ids_packed[0, spans[-1]] = 1 + number % 2  # ids repeat, documents do not
        at += length + gap

    def pack(alone: Tree, around: Tree) -> Tree:
        for number, (span, length) in enumerate(zip(spans, lengths)):
            around = jax.tree.map(
                lambda x, y, n=number, s=span, l=length: x.at[0, s].set(y[n, :l]), around, alone
            )
        return around

    @jax.jit
    def run(inputs, params, segment_ids, cotangents):
        def outputs(inputs, params):
            return subject.apply(inputs, params, segment_ids, None, impl)[0]

        found, vjp = jax.vjp(outputs, inputs, params)
        return found, *vjp(cotangents)

    own, _ = draw_cotangents(rng, subject, impl, inputs, params, ids_alone, None)
    own = jax.tree.map(lambda c: jnp.where(like(ids_alone, c) != 0, c, 0), own)
    together = pack(own, jax.tree.map(jnp.zeros_like, own))
    *packed, packed_params = run(pack(inputs, filler), params, jnp.asarray(ids_packed), together)
    *alone, alone_params = run(inputs, params, ids_alone, own)
    for number, (span, length) in enumerate(zip(spans, lengths)):
        got = jax.tree.map(lambda x, s=span: x[:1, s], packed)
        want = jax.tree.map(lambda x, n=number, l=length: x[n : n + 1, :l], alone)
        assert_close(f"{subject.name}: packed = separate, document {number}", got, want, tolerance)
    law = f"{subject.name}: packed = separate, parameters"
    assert_close(law, packed_params, alone_params, tolerance)


def check_split(
    subject: Subject,
    rng,
    batch: int,
    time: int,
    cuts: Sequence[int],
    segment_ids=None,
    dtype=jnp.float64,
    tolerance: float = 1e-10,
    impl: str = "chunked",
    with_state: bool = True,
) -> None:
    """Law 3: calls on the pieces between `cuts`, each with the state of the previous one, equal one
    call, including gradients through the state. `cuts=range(1, time)` is decoding."""

    def in_pieces(inputs, params, segment_ids, state, impl):
        outputs = []
        for first, last in zip([0, *cuts], [*cuts, time], strict=True):
            piece = jax.tree.map(lambda x, s=slice(first, last): x[:, s], inputs)
            ids = None if segment_ids is None else segment_ids[:, first:last]
            out, state = subject.apply(piece, params, ids, state, impl)
            outputs.append(out)
        return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1), *outputs), state

    inputs, params = subject.inputs(rng, batch, time, dtype), subject.params(rng, dtype)
    state = subject.state(rng, batch, dtype) if with_state else None
    cotangents = draw_cotangents(rng, subject, impl, inputs, params, segment_ids, state)
    pieces = dataclasses.replace(subject, apply=in_pieces)
    results = [
        runner(form, impl)(inputs, params, segment_ids, state, cotangents)
        for form in (pieces, subject)
    ]
    assert_close(f"{subject.name}: split at {list(cuts)} = whole", *results, tolerance)


def check_causal(
    subject: Subject,
    rng,
    batch: int,
    time: int,
    cut: int,
    segment_ids,
    dtype=jnp.float32,
    impl: str = "chunked",
) -> None:
    """Law 4, exactly: replacing the tokens from `cut` on changes no output before it, and these tokens
    get no gradient from there; replacing padded tokens changes no output and no gradient, and their
    output is 0."""
    inputs, params = subject.inputs(rng, batch, time, dtype), subject.params(rng, dtype)
    other = subject.inputs(rng, batch, time, dtype)
    cotangents = draw_cotangents(rng, subject, impl, inputs, params, segment_ids, None)
    cotangents = (
        jax.tree.map(lambda c: c.at[:, cut:].set(0), cotangents[0]),
        jax.tree.map(jnp.zeros_like, cotangents[1]),
    )

    def replaced(mask_BT):
        return jax.tree.map(lambda x, y: jnp.where(like(mask_BT, x), y, x), inputs, other)

    later_BT = jnp.broadcast_to(jnp.arange(time)[None] >= cut, (batch, time))
    padding_BT = segment_ids == 0
    run = runner(subject, impl)
    was, later, padded = (
        run(x, params, segment_ids, None, cotangents)
        for x in (inputs, replaced(later_BT), replaced(padding_BT))
    )

    def before(result):
        return jax.tree.map(lambda x: x[:, :cut], result["outputs"])

    name = subject.name
    assert_close(f"{name}: a later token changes an earlier output", before(later), before(was), 0)

    def at(tree, mask):
        return jax.tree.map(lambda x: jnp.where(like(mask, x), x, 0), tree)

    for what, tree in (
        ("a later token gets a gradient", at(was["gradients"][0], later_BT)),
        ("padding has an output", at(was["outputs"], padding_BT)),
        ("padding gets a gradient", at(was["gradients"][0], padding_BT)),
    ):
        assert_close(f"{name}: {what}", tree, jax.tree.map(jnp.zeros_like, tree), 0)
    keep = ("outputs", "gradients")
    got, want = ({k: r[k] for k in keep} for r in (padded, was))
    assert_close(f"{name}: padding changes a result", got, want, 0)


def check_finite(
    subject: Subject,
    rng,
    batch: int,
    time: int,
    dtype=jnp.float32,
    impl: str = "chunked",
    segment_ids=None,
) -> None:
    """Law 5: values and gradients are finite with the subject's extreme inputs."""
    run = runner(subject, impl)
    for name, extreme in {"plain": lambda x: x, **subject.extremes}.items():
        inputs = extreme(subject.inputs(rng, batch, time, dtype))
        params = subject.params(rng, dtype)
        state = subject.state(rng, batch, dtype) if subject.state else None
        cotangents = draw_cotangents(rng, subject, impl, inputs, params, segment_ids, state)
        result = run(inputs, params, segment_ids, state, cotangents)
        for path, leaf in jax.tree_util.tree_leaves_with_path(result):
            bad = int(np.sum(~np.isfinite(np.asarray(leaf, np.float64))))
            if bad:
                where = jax.tree_util.keystr(path)
                raise AssertionError(
                    f"{subject.name}, {name} inputs, T={time}: {bad} non-finite in {where}"
                )


def check_sharded(
    subject: Subject,
    rng,
    mesh: jax.sharding.Mesh,
    batch: int,
    time: int,
    axis: str = "data",
    dtype=jnp.float32,
    tolerance: float = 1e-5,
    impl: str = "chunked",
    segment_ids=None,
    with_state: bool = True,
) -> None:
    """Law 6: with the batch split over `axis` of `mesh`, results equal a single device's."""
    inputs, params = subject.inputs(rng, batch, time, dtype), subject.params(rng, dtype)
    state = subject.state(rng, batch, dtype) if subject.state and with_state else None
    cotangents = draw_cotangents(rng, subject, impl, inputs, params, segment_ids, state)
    run = runner(subject, impl)
    single = run(inputs, params, segment_ids, state, cotangents)
    split = jax.NamedSharding(mesh, jax.P(axis))
    whole = jax.NamedSharding(mesh, jax.P())
    by_batch = (inputs, segment_ids, state, cotangents)
    inputs, segment_ids, state, cotangents = jax.device_put(by_batch, split)
    params = jax.device_put(params, whole)
    sharded = run(inputs, params, segment_ids, state, cotangents)
    for leaf in jax.tree.leaves(sharded["outputs"]):
        if leaf.sharding.is_fully_replicated:
            raise AssertionError(f"{subject.name}: outputs of sharded inputs are replicated")
    sharded, single = jax.device_get((sharded, single))
    assert_close(f"{subject.name}: sharded = single", sharded, single, tolerance)


def check_deterministic(
    subject: Subject,
    rng,
    batch: int,
    time: int,
    dtype=jnp.float32,
    impl: str = "chunked",
    segment_ids=None,
) -> None:
    """Law 7: two runs of values and gradients have the same bits."""
    inputs, params = subject.inputs(rng, batch, time, dtype), subject.params(rng, dtype)
    state = subject.state(rng, batch, dtype) if subject.state else None
    cotangents = draw_cotangents(rng, subject, impl, inputs, params, segment_ids, state)
    run = runner(subject, impl)
    results = [run(inputs, params, segment_ids, state, cotangents) for _ in range(2)]
    assert_close(f"{subject.name}: two runs", *results, 0)


def check_vmap(
    subject: Subject,
    rng,
    size: int,
    batch: int,
    time: int,
    dtype=jnp.float64,
    tolerance: float = 1e-10,
    impl: str = "chunked",
) -> None:
    """jax.vmap over a leading axis of all arrays, gradients included, equals a loop over it."""
    draws = []
    for _ in range(size):
        ids = draw_segment_ids(rng, batch, time)
        inputs, params = subject.inputs(rng, batch, time, dtype), subject.params(rng, dtype)
        state = subject.state(rng, batch, dtype) if subject.state else None
        cotangents = draw_cotangents(rng, subject, impl, inputs, params, ids, state)
        draws.append((inputs, params, ids, state, cotangents))
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *draws)
    run = runner(subject, impl)
    mapped = jax.vmap(lambda *draw: run(*draw))(*stacked)
    looped = jax.tree.map(lambda *xs: jnp.stack(xs), *(run(*d) for d in draws))
    assert_close(f"{subject.name}: vmap = loop", mapped, looped, tolerance)


#: Lengths at, around and across chunk boundaries.
