"""Reads a fixture, runs ours on it and compares outputs and every gradient."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.testing import assert_close

Arrays = dict[str, Any]
TOLERANCE = 1e-5  # of each array's largest entry; ours runs in float32


@dataclasses.dataclass(frozen=True)
class Fixture:
    """What a reference implementation computed; see references/recording.py.

    Attributes:
      name: the file's.
      source: library, version and function or class.
      settings: what its run took besides arrays.
      inputs, weights, outputs, cotangents: arrays by name.
      gradients: of sum(outputs * cotangents), as dict(inputs=..., weights=...).
    """

    name: str
    source: str
    settings: dict[str, Any]
    inputs: Arrays
    weights: Arrays
    outputs: Arrays
    cotangents: Arrays
    gradients: dict[str, Arrays]

    @classmethod
    def load(cls, folder: pathlib.Path, name: str) -> "Fixture":
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            arrays = {k: file[k] for k in file.files if k != "about"}

        def group(prefix: str) -> Arrays:
            start = f"{prefix}/"
            return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}

        gradients = {part: group(f"gradients/{part}") for part in ("inputs", "weights")}
        groups = {part: group(part) for part in ("inputs", "weights", "outputs", "cotangents")}
        return cls(name, about["source"], about["settings"], **groups, gradients=gradients)

    def compare(self, run: Callable[[Arrays, Arrays], Arrays]) -> None:
        """Holds `run(inputs, weights) -> outputs`, in the reference's layouts, to the fixture.

        `run` maps weights and inputs to ours and outputs back: the gradients, which are taken
        through it, then come in the reference's layouts too. A weight that it forgets has
        gradient 0 and is found out.

        Raises:
          AssertionError: where an output or a gradient is off by more than `TOLERANCE`.
        """
        floating = {k: v for k, v in self.inputs.items() if np.issubdtype(v.dtype, np.floating)}
        fixed = {k: v for k, v in self.inputs.items() if k not in floating}

        @jax.jit
        def both(inputs, weights, cotangents):
            outputs, vjp = jax.vjp(lambda i, w: run({**i, **fixed}, w), inputs, weights)
            return outputs, vjp({k: cotangents[k] for k in outputs})

        with jax.enable_x64(False):
            cotangents = jax.tree.map(jnp.asarray, self.cotangents)
            outputs, gradients = both(floating, self.weights, cotangents)
        assert set(outputs) == set(self.outputs), f"{self.name}: outputs are {sorted(outputs)}"
        got = dict(zip(("inputs", "weights"), gradients, strict=True))
        where = f"{self.name} ({self.source})"
        assert_close(f"{where}: outputs", outputs, dict(self.outputs), TOLERANCE)
        assert_close(f"{where}: gradients", got, self.gradients, TOLERANCE)


def names(folder: pathlib.Path) -> set[str]:
    """The fixtures that lie in a folder."""
    return {path.stem for path in folder.glob("*.npz")}


def check_complete(folder: pathlib.Path, cases: Mapping[str, Any], prefix: str) -> None:
    """Each fixture of ops, mixtures or mixers has a case here, and each case its fixture.

    Args:
      prefix: of the fixtures' names, "op_" or "moe_"; "" are those with neither.
    """
    kinds = {
        name: next((p for p in ("op_", "moe_") if name.startswith(p)), "") for name in names(folder)
    }
    found = {name for name, kind in kinds.items() if kind == prefix}
    assert found == set(cases), f"only on one side: {sorted(found ^ set(cases))}"
