"""Attention of chosen layers: the pattern of softmax attention, and the exact one of linear mixers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.errors import UserError
from hybridlm.models.block import Block
from hybridlm.models.hooks import Hooks
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.mixers.capabilities import attends
from hybridlm.models.norms import at_least_float32
from hybridlm.models.params import Model, Params
from hybridlm.models.programs import per_model

#: The values that a matrix multiplies, where a mixer gates each of their channels, and elsewhere.
VALUES = ("hook_written", "hook_v")
OUTPUTS = ("hook_z", "hook_recurrence_out")
TOLERANCE = 1e-3  # of the largest output; rounding in float32 stays below 1e-4
COLUMNS = 64  # of the identity matrix that go through the mixer at once
MOST = 2**30  # entries of the matrices of one call, 4 GiB of float32
GROUP = 2**26  # entries at once, where heads are taken in groups


def attention_rows(
    model: Model,
    params: Params,
    tokens_BT: jax.Array,
    ids_BT: jax.Array,
    rows_BQ: jax.Array,
    layers: Sequence[int],
    dtype: jnp.dtype,
) -> dict[int, jax.Array]:
    """By layer, the attention probabilities (B, H, Q, T) of the queries at the rows.

    Raises:
      UserError: for a layer without attention.
    """
    program = _attention(model, dtype, tuple(layers))
    return dict(zip(layers, program(params, tokens_BT, ids_BT, rows_BQ), strict=True))


def effective_attention(
    model: Model,
    params: Params,
    tokens_BT: jax.Array,
    ids_BT: jax.Array,
    layer: int,
    head: int | Sequence[int] | None,
    part: str | None,
    dtype: jnp.dtype,
) -> jax.Array:
    """The matrix A with output = A @ values, activations of the layer; see `Inspected`.

    Raises:
      UserError: if the layer names no values or no output, there is no such head, there are more
        than `MOST` entries, or the output is not linear in the values.
    """
    names = _Names.of(model, layer, part)
    heads = np.arange(names.heads) if head is None else np.atleast_1d(np.asarray(head, np.int32))
    for wanted in heads:
        if not 0 <= wanted < names.heads:
            raise UserError(f"head is {wanted}, and layer {layer} has {names.heads} heads: from 0")
    batch, time = tokens_BT.shape
    entries = batch * len(heads) * time * time
    if entries > MOST:
        raise UserError(
            f"{len(heads)} heads of layer {layer} would have {entries:,} entries, and at most {MOST:,}"
            " are computed at once: choose fewer heads or tokens"
        )
    program = _effective(model, dtype, layer, names)
    found = program(params, tokens_BT, ids_BT, heads.astype(np.int32))
    if not found.error <= TOLERANCE * found.largest:
        raise UserError(
            f"layer {layer} ({model.config.layout.names[layer]}) is not linear in its values, with one"
            f" matrix for all channels of a head: its output differs by {float(found.error):.2g}"
        )
    return found.matrix if head is None or np.ndim(head) else found.matrix[:, 0]


def head_count(model: Model, layer: int, part: str | None) -> int:
    """The heads of a layer that have a matrix.

    Raises:
      UserError: for a mixer that names no values.
    """
    return _Names.of(model, layer, part).heads


def head_groups(
    model: Model, layer: int, part: str | None, tokens_shape: tuple[int, int]
) -> list[np.ndarray]:
    """The heads of a layer in groups, of `GROUP` entries of its matrices or of one head."""
    heads, (batch, time) = head_count(model, layer, part), tokens_shape
    together = max(1, GROUP // (batch * time * time))
    return [np.arange(at, min(at + together, heads)) for at in range(0, heads, together)]


class _Names(NamedTuple):
    """The activations of a mixer that a matrix joins, as named within it, and its heads."""

    values: str
    output: str
    heads: int

    @classmethod
    def of(cls, model: Model, layer: int, part: str | None) -> "_Names":
        if not 0 <= layer < model.config.depth:
            raise UserError(f"layer is {layer}, and the model has {model.config.depth}: from 0")
        known = _mixer_hooks(model, jnp.dtype(jnp.float32), layer)
        prefix = "" if part is None else f"{part}."
        output = next((prefix + name for name in OUTPUTS if prefix + name in known), None)
        scopes = prefix.split(".")[:-1]
        above = [
            ".".join([*scopes[:n], name]) for n in range(len(scopes), -1, -1) for name in VALUES
        ]
        values = next((name for name in above if name in known), None)
        if output is None or values is None:
            parts = sorted({n.rpartition(".")[0] for n in known if n.endswith(OUTPUTS)} - {""})
            mend = f"name one of its parts {', '.join(parts)}" if parts else "it is no linear mixer"
            where = f"layer {layer} ({model.config.layout.names[layer]})"
            where += "" if part is None else f", part {part!r},"
            raise UserError(f"{where} has no values and outputs that a matrix joins: {mend}")
        heads = known[output].shape[2]
        if heads % known[values].shape[2]:
            raise UserError(
                f"layer {layer} ({model.config.layout.names[layer]}) writes several values a token for"
                " each head, which no matrix from tokens to tokens holds"
            )
        return cls(values, output, heads)


class _Found(NamedTuple):
    matrix: jax.Array
    error: jax.Array
    largest: jax.Array


@per_model
def _mixer_hooks(model: Model, dtype: jnp.dtype, layer: int) -> Mapping[str, Any]:
    """Shapes of the activations within a layer's mixer, for a row of two tokens."""

    def trace(params: Params, tokens_BT: jax.Array) -> dict[str, jax.Array]:
        def measure(block: Block, x_BTD: jax.Array, context: SequenceContext) -> Any:
            hooks = Hooks(lambda name: True)
            block.mixer(block.mixer_input(x_BTD, context), context._replace(hooks=hooks))
            return hooks.kept

        return _measured(model, dtype, (layer,), measure, params, tokens_BT, tokens_BT)[0]

    return jax.eval_shape(trace, model.abstract, jax.ShapeDtypeStruct((1, 2), jnp.int32))


@per_model
def _attention(model: Model, dtype: jnp.dtype, layers: tuple[int, ...]):
    names = model.config.layout.names
    for layer in layers:
        if not 0 <= layer < len(names):
            raise UserError(f"layer is {layer}, and the model has {len(names)}: from 0")

    @jax.jit
    def program(params, tokens_BT, ids_BT, rows_BQ):
        def measure(block, x_BTD, context):
            if not attends(block.mixer):
                return None
            return block.mixer.attention_rows(
                block.mixer_input(x_BTD, context), context, rows_BQ
            ).probs_BHQT

        found = _measured(model, dtype, layers, measure, params, tokens_BT, ids_BT)
        for layer, probs in zip(layers, found, strict=True):
            if probs is None:
                raise UserError(
                    f"layer {layer} ({names[layer]}) has no attention pattern: use"
                    " effective_attention, or another layer"
                )
        return found

    return program


@per_model
def _effective(model: Model, dtype: jnp.dtype, layer: int, names: _Names):
    @jax.jit
    def program(params, tokens_BT, ids_BT, heads_N):
        def measure(block, x_BTD, context):
            # In bfloat16 a matrix would differ from the mixer by the rounding of each sum.
            x_BTD = at_least_float32(block.mixer_input(x_BTD, context))

            def run(hooks: Hooks) -> dict[str, jax.Array]:
                block.mixer(x_BTD, context.apart()._replace(hooks=hooks))
                return hooks.kept

            kept = run(Hooks({names.values, names.output}.__contains__))
            values, output = kept[names.values], kept[names.output]

            def of(new_values: jax.Array) -> jax.Array:
                edits = {names.values: lambda _: new_values}
                return run(Hooks(names.output.__eq__, edits))[names.output]

            return _matrix(of, values, output, heads_N)

        return _measured(model, dtype, (layer,), measure, params, tokens_BT, ids_BT)[0]

    return program


def _matrix(
    of: Callable[[jax.Array], jax.Array], values: jax.Array, output: jax.Array, heads_N: jax.Array
) -> _Found:
    """The matrices (B, N, T, T) of N heads of the linear map `of` from values to outputs.

    Values are (B, T, G, V), outputs (B, T, H, V).

    V columns of the identity are V channels of a value head, so that one call of `of` gives V columns
    for all heads. Values and outputs (B, T, channels) count as heads of size 1.
    """
    time = values.shape[1]
    columns = values.shape[3] if values.ndim == 4 else 1
    calls = math.ceil(time / columns)

    def chosen(output: jax.Array) -> jax.Array:
        """(B, N, T, V)."""
        output = output if output.ndim == 4 else output[..., None]
        return jnp.moveaxis(jnp.take(output, heads_N, axis=2), 2, 1)

    def block(call: jax.Array) -> jax.Array:
        at_C = call * columns + jnp.arange(columns)
        identity_TC = (jnp.arange(time)[:, None] == at_C[None]).astype(values.dtype)
        identity = identity_TC[None, :, None] if values.ndim == 4 else identity_TC[None]
        return chosen(of(jnp.broadcast_to(identity, values.shape)))

    together = max(1, COLUMNS // columns)
    found = jax.lax.map(block, jnp.arange(calls), batch_size=together)
    matrix = jnp.moveaxis(found, 0, -2)  # (..., T, calls, V)
    matrix = matrix.reshape(*matrix.shape[:-2], -1)[..., :time]
    heads = output.shape[2]
    values = values if values.ndim == 4 else values[..., None]
    values = jnp.repeat(values, heads // values.shape[2], axis=2)
    wanted, given = chosen(output), chosen(values)
    error = jnp.max(jnp.abs(matrix @ given.astype(matrix.dtype) - wanted))
    return _Found(matrix, error, jnp.max(jnp.abs(wanted)))


def _measured(
    model: Model,
    dtype: jnp.dtype,
    layers: Sequence[int],
    measure: Callable[[Block, jax.Array, SequenceContext], Any],
    params: Params,
    tokens_BT: jax.Array,
    ids_BT: jax.Array,
) -> list[Any]:
    """`measure(block, the residual stream before it, context)` of the layers; to be traced."""
    module, found = model.bind(params), {}

    def apply(block, index, x_BTD, context, carry, given):
        if index in layers:
            found[index] = measure(block, x_BTD, context.apart())
        return block(x_BTD, context), carry, None

    context = SequenceContext.of(ids_BT)._replace(tokens_BT=tokens_BT)
    module.apply_layers(apply, module.embed(tokens_BT, dtype), context, unroll=True)
    return [found[layer] for layer in layers]
