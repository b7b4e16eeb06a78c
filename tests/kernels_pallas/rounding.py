"""Errors of kernels and of chunked forms whose products round alike."""

import jax
import jax.numpy as jnp
import numpy as np
from kernel_laws import Held

from kernels_pallas import testing
from kernels_pallas.testing.rounding import dots_rounded


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
