"""Matrix products inside TPU kernels, rounded in interpret mode as the chip rounds them.

A TPU multiplies bfloat16. At jax's default precision it rounds float32 operands to bfloat16; a CPU
that interprets a kernel does not. `dot` rounds explicitly, so that a kernel has the same products on
both: tests at the default precision see the chip's results for float32 inputs, and tests at "highest"
check the algebra in float32.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.lax import Precision

#: Contracted dimensions of `x @ y`, `x @ y.T` and `x.T @ y`.
NN, NT, TN = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))


def tiles() -> int:
    """Columns of the matrix unit, in tiles of 128, of the target chip: 1 up to v5p, 2 from v6e on, and
    1 if the chip is unknown."""
    try:
        return pltpu.get_tpu_info().mxu_column_size // 128
    except ValueError:  # no device and no mesh that names one: interpreted, or only traced
        return 1


def resolve_precision(precision) -> Precision:
    """The `jax.lax.Precision` of an op's argument `precision`, for the products of a kernel.

    None is jax's current default (`jax_default_matmul_precision`), so that this setting has the same
    effect on kernels as on XLA. Raises ValueError for one that TPU kernels do not support.
    """
    if precision is None:
        precision = jax.config.jax_default_matmul_precision
    if isinstance(precision, tuple):
        precision = max(precision, key=list(Precision).index)
    try:
        return Precision(precision)
    except ValueError:
        raise ValueError(
            f"precision of a TPU kernel must be one of default, high, highest; got {precision!r}."
        ) from None


def precision_name(precision) -> str:
    """`precision` as a feature of a case: "default", "high", "highest" or another name."""
    try:
        return resolve_precision(precision).name.lower()
    except ValueError:
        return str(precision)


def dot(x, y, dims=NN, precision: Precision = Precision.DEFAULT, out=jnp.float32):
    """The product of two matrices, accumulated and returned in `out`.

    bfloat16 operands are multiplied as they are, float32 ones at `precision`. If they are mixed, the
    float32 one is rounded at the default precision; at others the bfloat16 one is cast to float32.
    """
    if precision == Precision.DEFAULT or (x.dtype == y.dtype == jnp.bfloat16):
        x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
        precision = Precision.DEFAULT
    else:
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jax.lax.dot_general(
        x, y, (dims, ((), ())), precision=precision, preferred_element_type=out
    )
