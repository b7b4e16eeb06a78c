"""Matrix products inside TPU kernels, rounded in interpret mode as the chip rounds them.

A TPU multiplies bfloat16. At jax's default precision it rounds float32 operands to that, where a
CPU that interprets a kernel keeps them. Here the rounding is spelled out, so that a kernel has the
same products on both: tests at the default precision see what the chip would make of float32
inputs, and tests at "highest" hold the algebra to float32.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.lax import Precision

#: Contracted dimensions of `x @ y`, `x @ y.T` and `x.T @ y`.
NN, NT, TN = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))


def tiles() -> int:
    """Columns of the matrix unit in tiles of 128, of the chip that is traced for: 1 up to v5p, 2
    from v6e on, and 1 where no chip says."""
    try:
        return pltpu.get_tpu_info().mxu_column_size // 128
    except ValueError:  # neither a device nor a mesh that names one: interpreted, or only traced
        return 1


def resolve_precision(precision) -> Precision:
    """`precision`, as ops take it, as one that every kernel product is given by name.

    None is jax's default of the moment (`jax_default_matmul_precision`), so that an ambient
    setting means to kernels what it means to XLA. Raises ValueError for one that a TPU kernel has
    no products for.
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
    """`precision` as a feature of a case: "default", "high", "highest", or what else it is."""
    try:
        return resolve_precision(precision).name.lower()
    except ValueError:
        return str(precision)


def dot(x, y, dims=NN, precision: Precision = Precision.DEFAULT, out=jnp.float32):
    """The product of two matrices, accumulated and returned in `out`.

    bfloat16 operands are multiplied as they are, float32 ones at `precision`; of mixed ones the
    float32 one is rounded at the default precision, otherwise the other is widened.
    """
    if precision == Precision.DEFAULT or (x.dtype == y.dtype == jnp.bfloat16):
        x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
        precision = Precision.DEFAULT
    else:
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jax.lax.dot_general(
        x, y, (dims, ((), ())), precision=precision, preferred_element_type=out
    )
