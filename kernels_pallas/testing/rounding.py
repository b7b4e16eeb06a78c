"""Products on a CPU with the rounding of a TPU, or of a kernel whose products are of bfloat16."""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.interpreters import mlir


@contextlib.contextmanager
def dots_rounded() -> Iterator[None]:
    """Programs lowered inside round the operands of products at the default precision to bfloat16, as
    a TPU does. Products at higher precisions do not change."""

    def rounded(x, y, *, preferred_element_type=None, out_sharding=None, **parameters):
        del out_sharding
        dtype = preferred_element_type or jnp.result_type(x, y)
        # Not two conversions, which XLA may remove on a CPU.
        x, y = (jax.lax.reduce_precision(a.astype(jnp.float32), 8, 7) for a in (x, y))
        parameters["precision"] = jax.lax.Precision.HIGHEST
        return jax.lax.dot_general(x, y, **parameters).astype(dtype)

    def rule(context, *arguments, **parameters):
        floats = all(a.dtype in (jnp.float32, jnp.bfloat16) for a in context.avals_in)
        precision = parameters["precision"]
        default = precision is None or set(precision) == {jax.lax.Precision.DEFAULT}
        lower = mlir.lower_fun(rounded, multiple_results=False) if floats and default else original
        return lower(context, *arguments, **parameters)

    primitive = jax.lax.dot_general_p
    original = mlir._platform_specific_lowerings["cpu"][primitive].rule
    mlir.register_lowering(primitive, rule, platform="cpu")
    try:
        yield
    finally:
        mlir.register_lowering(primitive, original, platform="cpu")
