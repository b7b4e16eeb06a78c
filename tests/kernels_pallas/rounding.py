"""Products on a CPU with the rounding of a TPU, and their errors."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import mlir
from kernel_laws import Held

from kernels_pallas import testing


@contextlib.contextmanager
def dots_rounded():
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


def error_ratios(subject: testing.Subject, rng, **settings) -> dict[str, tuple[float, float]]:
    """For each result with bfloat16 inputs and rounded products: the kernel's root mean square error
    against the float64 reference, and that of the chunked form."""
    held = Held(subject, rng, precision=None, dtype=jnp.bfloat16, **settings)
    arguments = held.draw()
    want = held.reference(*arguments)
    with dots_rounded():
        results = held.run(*arguments), testing.runner(subject, "chunked")(*arguments)
    errors = {}
    for path, exact in jax.tree_util.tree_leaves_with_path(want):
        if np.issubdtype(exact.dtype, np.floating):
            errors[jax.tree_util.keystr(path)] = tuple(
                _rms(_at(result, path), exact) for result in results
            )
    return errors


def assert_as_good_as_chunked(subject: testing.Subject, rng, most: float = 1.5, **settings) -> None:
    """A kernel's error is at most `most` times the chunked form's, for every result."""
    for name, (kernel, chunked) in error_ratios(subject, rng, **settings).items():
        if kernel > most * chunked:
            raise AssertionError(
                f"{subject.name}: {name} off by {kernel:.2e}, the chunked form by {chunked:.2e}"
            )


def _at(tree, path):
    return dict(jax.tree_util.tree_leaves_with_path(tree))[path]


def _rms(got, want) -> float:
    got, want = np.asarray(got, np.float64), np.asarray(want)
    return float(np.sqrt(np.mean((got - want) ** 2) / max(1e-30, np.mean(want**2))))
