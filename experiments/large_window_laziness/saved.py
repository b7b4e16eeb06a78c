"""The files of a run: its curve, and trees of arrays in one file that is never half written."""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.settings import json_text
from hybridlm.storage.writing import write_text, writing


def write_curve(folder: pathlib.Path, curve: list[dict[str, Any]]) -> None:
    """`curve.jsonl`, a line per measurement."""
    write_text(folder / "curve.jsonl", "".join(json_text.dumps(r) + "\n" for r in curve))


def write_tree(path: pathlib.Path, tree: Any, **more: np.ndarray) -> None:
    """The leaves of a tree, and more arrays by name, for `read_tree`."""
    arrays = {f"leaf{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(tree))}
    draft = path.with_name("draft.npz")
    with writing(path):
        np.savez(draft, **arrays, **more)
        os.replace(draft, path)


def read_tree(path: pathlib.Path, like: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """The tree, in the structure of `like`, and the other arrays by name."""
    with np.load(path) as file:
        arrays = dict(file)
    leaves = [jnp.asarray(arrays.pop(f"leaf{i}")) for i in range(len(jax.tree.leaves(like)))]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), arrays
