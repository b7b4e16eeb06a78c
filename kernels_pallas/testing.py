"""The laws that every sequence op and every mixer must obey, as reusable checks.

A `Subject` wraps an op (or a whole mixer) as one function of named inputs, parameters, segment ids and
a state. Each `check_*` draws arrays from `rng`, checks one law and raises AssertionError with the
error that it found:

    check_forms          1  chunked = reference, outputs, final state and every gradient
    check_packed         2  a document's outputs and gradients do not change when packed
    check_split          3  several calls with a carried state = one call
    check_causal         4  later tokens change nothing earlier, padding changes nothing
    check_finite         5  finite values and gradients on extreme inputs
    check_sharded        6  sharded over the batch = single device
    check_deterministic  7  two runs, the same bits
    check_vmap              a mapped axis = a loop

`LAWS` has the same checks as functions of (subject, rng) that also draw lengths, boundaries and cuts,
for property-based tests over many subjects.

A subject must mask outputs that are not 0 at padding (a log-sum-exp).
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


@dataclasses.dataclass(frozen=True)
class Subject:
    """An op or a mixer to check.

    Arguments:
      name: for error messages.
      apply: `apply(inputs, params, segment_ids, state, impl) -> (outputs, final_state)`;
        inputs and outputs are dicts of arrays (B, T, ...), segment_ids may be None, state
        may be None (no tokens before).
      inputs: `inputs(rng, batch, time, dtype)` draws the inputs.
      params: `params(rng, dtype)` draws the arrays without a time axis, {} if there are none.
      state: `state(rng, batch, dtype)` draws a state whose tokens belong to document 1.
      extremes: named functions inputs -> inputs that set gates and magnitudes to extreme values.
    """

    name: str
    apply: Callable
    inputs: Callable
    params: Callable = lambda rng, dtype: {}
    state: Callable | None = None
    extremes: dict[str, Callable] = dataclasses.field(default_factory=dict)


def normal(rng: np.random.Generator, shape: Sequence[int], dtype) -> jax.Array:
    """Standard normal numbers as a jax array."""
    return jnp.asarray(rng.standard_normal(tuple(shape)), dtype)


def draw_segment_ids(
    rng: np.random.Generator, batch: int, time: int, documents: int = 4, padding: float = 0.3
) -> jax.Array:
    """(B, T) ids with about `documents` runs per row at random boundaries. A run is padding with
    probability `padding`. Ids repeat, so equal ids need not be one document."""
    ids = np.zeros((batch, time), np.int32)
    for row in ids:
        cuts = np.sort(rng.integers(0, time + 1, size=documents - 1))
        for run in np.split(np.arange(time), cuts):
            row[run] = 0 if rng.random() < padding else rng.integers(1, 4)
    return jnp.asarray(ids)


def error(got: Tree, want: Tree) -> float:
    """Largest |got - want| over all leaves, each relative to the largest |want| of its leaf
    (at least 1e-3)."""
    worst = 0.0
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if x.shape != y.shape:
            raise AssertionError(f"shapes differ: {x.shape} and {y.shape}")
        if x.size:
            worst = max(worst, _nan_is_inf(np.max(np.abs(x - y))) / max(1e-3, np.max(np.abs(y))))
    return worst


def assert_close(law: str, got: Tree, want: Tree, tolerance: float) -> None:
    """AssertionError naming the leaf with the largest relative error if it exceeds `tolerance`."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(want)]
    errors = [error(x, y) for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)]
    worst = int(np.argmax(errors)) if errors else 0
    if errors and not errors[worst] <= tolerance:
        raise AssertionError(f"{law}: {names[worst]} off by {errors[worst]:.3e} > {tolerance:.1e}")


_COLLECTIVE = re.compile(
    r" = (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute|"
    r"collective-broadcast)(?:-start)?\("
)


def collectives(text: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """(kind, dtype, shape) of every array in the results of a compiled program's collectives.

    `text` is the result of `jax.stages.Compiled.as_text()`; dtypes are written as there, "f32".
    """
    return [
        (kind, dtype, tuple(int(n) for n in sizes.split(",") if n))
        for types, kind in _COLLECTIVE.findall(text)
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", types)
    ]


def runner(subject: Subject, impl: str) -> Callable:
    """A compiled `run(inputs, params, segment_ids, state, cotangents=None)`.

    It returns a dict of outputs, final state and, with cotangents (from `draw_cotangents`), the
    gradients of inputs, params and the state's floating leaves.
    """

    def run(inputs, params, segment_ids, state, cotangents=None):
        floats, rebuild = _floats(state)

        def forward(inputs, params, floats):
            outputs, final = subject.apply(inputs, params, segment_ids, rebuild(floats), impl)
            return (outputs, _floats(final)[0]), final

        if cotangents is None:
            (outputs, _), final = forward(inputs, params, floats)
            return dict(outputs=outputs, final=final)
        (outputs, _), vjp, final = jax.vjp(forward, inputs, params, floats, has_aux=True)
        return dict(outputs=outputs, final=final, gradients=vjp(cotangents))

    return jax.jit(run)


def draw_cotangents(rng, subject, impl, inputs, params, segment_ids, state) -> tuple:
    """Random cotangents for the outputs and the floating leaves of the final state."""

    def forward(inputs, params, state):
        outputs, final = subject.apply(inputs, params, segment_ids, state, impl)
        return outputs, _floats(final)[0]

    shapes = jax.eval_shape(forward, inputs, params, state)
    return jax.tree.map(lambda s: normal(rng, s.shape, s.dtype), shapes)


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
    return {"outputs": result["outputs"], "final state": _floats(result["final"])[0]} | gradients


def _widened(x):
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _rms_error(got: Tree, want: Tree) -> float:
    """Over all entries of all leaves, each leaf relative to its own root mean square."""
    squares = [
        np.square((np.asarray(x, np.float64) - y) / max(1e-3, np.sqrt(np.mean(np.square(y)))))
        for x, y in zip(jax.tree.leaves(got), map(np.asarray, jax.tree.leaves(want)), strict=True)
        if y.size
    ]
    return _nan_is_inf(np.sqrt(np.mean(np.concatenate([s.ravel() for s in squares] or [[0.0]]))))


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
    own = jax.tree.map(lambda c: jnp.where(_as_wide(ids_alone, c) != 0, c, 0), own)
    together = pack(own, jax.tree.map(jnp.zeros_like, own))
    *packed, packed_params = run(pack(inputs, filler), params, jnp.asarray(ids_packed), together)
    *alone, alone_params = run(inputs, params, ids_alone, own)
    for number, (span, length) in enumerate(zip(spans, lengths)):
        got = jax.tree.map(lambda x, s=span: x[:1, s], packed)
        want = jax.tree.map(lambda x, n=number, l=length: x[n : n + 1, :l], alone)
        assert_close(f"{subject.name}: packed = separate, document {number}", got, want, tolerance)
    law = f"{subject.name}: packed = separate, parameters"
    assert_close(law, packed_params, alone_params, tolerance)


def _as_wide(ids_BT, x):
    return ids_BT.reshape(ids_BT.shape + (1,) * (x.ndim - 2))


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
        return jax.tree.map(lambda x, y: jnp.where(_like(mask_BT, x), y, x), inputs, other)

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
        return jax.tree.map(lambda x: jnp.where(_like(mask, x), x, 0), tree)

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
LENGTHS = (1, 2, 15, 17, 63, 64, 65, 127, 130)


def draw_length(rng, longest: int = LENGTHS[-1]) -> int:
    """One of `LENGTHS`, at most `longest`."""
    return int(rng.choice([n for n in LENGTHS if n <= longest]))


def draw_documents(rng, longest: int) -> tuple[list[int], list[int]]:
    """Lengths of five documents, of one token or of one other number, and the padded gaps after them."""
    lengths = [1, *rng.choice([1, int(rng.integers(2, longest + 1))], size=2).tolist()]
    lengths += [max(2, *lengths)] * 2
    rng.shuffle(lengths)
    return lengths, (rng.integers(0, 4, size=len(lengths)) * rng.integers(0, 2)).tolist()


def _law_forms(subject, rng) -> None:
    time = draw_length(rng)
    ids = draw_segment_ids(rng, 2, time)
    with_state = subject.state is not None and bool(rng.integers(0, 4))
    check_forms(subject, rng, 2, time, segment_ids=ids, with_state=with_state)


def _law_forms_float32(subject, rng) -> None:
    time = draw_length(rng)
    ids = draw_segment_ids(rng, 2, time, padding=0.1)
    with_state = subject.state is not None
    check_forms(subject, rng, 2, time, jnp.float32, 1e-5, ids, with_state)


def _law_packed(subject, rng) -> None:
    check_packed(subject, rng, *draw_documents(rng, longest=int(rng.choice([5, 40]))))


def _law_split(subject, rng) -> None:
    time = draw_length(rng, 65) + 2
    ids = draw_segment_ids(rng, 2, time)
    changes = np.flatnonzero(np.any(np.diff(np.asarray(ids), axis=1), axis=0)) + 1
    cuts = {int(rng.integers(1, time))} | ({int(rng.choice(changes))} if len(changes) else set())
    with_state = subject.state is not None and bool(rng.integers(0, 2))
    check_split(subject, rng, 2, time, sorted(cuts), segment_ids=ids, with_state=with_state)


def _law_decode(subject, rng) -> None:
    prefill = int(rng.integers(1, 8))
    time = prefill + 2
    ids = draw_segment_ids(rng, 2, time, documents=3)
    check_split(subject, rng, 2, time, range(prefill, time), segment_ids=ids, with_state=False)


def _law_causal(subject, rng) -> None:
    time = draw_length(rng) + 1
    check_causal(subject, rng, 2, time, int(rng.integers(1, time)), draw_segment_ids(rng, 2, time))


def _law_finite(subject, rng) -> None:
    time = int(rng.choice([1, 63, 127]))
    check_finite(subject, rng, 2, time, segment_ids=draw_segment_ids(rng, 2, time))


def _law_deterministic(subject, rng) -> None:
    check_deterministic(subject, rng, 2, 70, segment_ids=draw_segment_ids(rng, 2, 70))


#: Laws 1 to 5 and 7 as functions of (subject, rng); float64 must be enabled (`jax.enable_x64`).
#: Law 6 needs several devices: `check_sharded`. Law 1 in bfloat16 is `check_bfloat16`.
LAWS: dict[str, Callable[[Subject, np.random.Generator], None]] = {
    "chunked = reference": _law_forms,
    "chunked = reference, float32": _law_forms_float32,
    "packed = separate": _law_packed,
    "split = whole": _law_split,
    "decode = whole": _law_decode,
    "causal": _law_causal,
    "finite": _law_finite,
    "deterministic": _law_deterministic,
}


def _floats(tree: Tree) -> tuple[list, Callable]:
    """The floating leaves of a tree, and a function that replaces them."""
    leaves, structure = jax.tree.flatten(tree)
    is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def rebuild(floats):
        floats = iter(floats)
        filled = [next(floats) if f else leaf for f, leaf in zip(is_float, leaves, strict=True)]
        return jax.tree.unflatten(structure, filled)

    return [leaf for f, leaf in zip(is_float, leaves, strict=True) if f], rebuild


def _like(mask_BT, x):
    return mask_BT.reshape(mask_BT.shape + (1,) * (x.ndim - 2))


def _nan_is_inf(x) -> float:
    return float("inf") if np.isnan(x) else float(x)
