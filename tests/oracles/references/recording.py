"""A reference computation, and the file that keeps what it gave.

Weights, inputs and cotangents are float32 numbers; the references run on them in float64, so that
what a comparison finds is the error of ours. (In float32 some are off by 5e-5 themselves: those
that take differences of sums of log decays over a chunk of 64 tokens.)
"""

import dataclasses
import json
import pathlib
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass
class Case:
    """One reference computation on given numbers.

    Attributes:
      source: library, version and function or class.
      run: `run(inputs, weights) -> outputs`, all of them dicts of tensors.
      inputs: differentiable unless they are integers.
      weights: differentiable, in the reference's own names and layouts.
      settings: what else a reader must know to run the same, as JSON.
    """

    source: str
    run: Callable[[Tensors, Tensors], Tensors]
    inputs: Tensors
    weights: Tensors = dataclasses.field(default_factory=dict)
    settings: dict = dataclasses.field(default_factory=dict)


class Float64(torch.overrides.TorchFunctionMode):
    """Whoever asks for float32 gets float64: references cast to float32 by name."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args = [self._wider(x) for x in args]
        return func(*args, **{k: self._wider(v) for k, v in (kwargs or {}).items()})

    @staticmethod
    def _wider(x):
        return torch.float64 if x is torch.float32 else x


class Draw:
    """Random tensors that depend on the seed and the fixture's name alone."""

    def __init__(self, seed: int, name: str):
        self.generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))

    def normal(self, *shape: int, scale: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        return mean + scale * torch.randn(shape, generator=self.generator)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def log_decay(self, *shape: int) -> torch.Tensor:
        """Logarithms of gates, most of them mild (about -0.05 to -1), one in twenty -10."""
        mild = -torch.exp(self.normal(*shape, scale=1.0, mean=-1.5))
        return torch.where(self.uniform(*shape) < 0.05, -10.0, mild)

    def unit(self, *shape: int) -> torch.Tensor:
        """Vectors of length 1 along the last axis."""
        return torch.nn.functional.normalize(self.normal(*shape), dim=-1)


CASES: dict[str, Callable[[Draw], Case]] = {}


def case(make: Callable[[Draw], Case]) -> Callable[[Draw], Case]:
    """Registers `make` under its name, which is the fixture's."""
    CASES[make.__name__] = make
    return make


def write(folder: pathlib.Path, name: str, seed: int) -> int:
    """Runs a case and its gradients for random cotangents; returns the file's size in bytes.

    Raises:
      ValueError: where an output is not finite or a gradient is zero all over, of which a
        comparison would learn nothing.
    """
    torch.set_default_dtype(torch.float64)
    draw = Draw(seed, name)
    with Float64():
        made = CASES[name](draw)
        inputs, weights = _leaves(made.inputs), _leaves(made.weights)
        outputs = made.run(inputs, weights)
        cotangents = {k: draw.normal(*v.shape) for k, v in outputs.items()}
        cotangents = {k: v.detach() for k, v in _leaves(cotangents).items()}
    narrow = [k for k, v in outputs.items() if v.dtype != torch.float64]
    if narrow:
        raise ValueError(f"{name}: {narrow} are not float64")
    leaves = {
        **{f"inputs/{k}": v for k, v in inputs.items() if v.requires_grad},
        **{f"weights/{k}": v for k, v in weights.items()},
    }
    gradients = torch.autograd.grad(
        list(outputs.values()), list(leaves.values()), list(cotangents.values()), allow_unused=True
    )
    arrays = {f"gradients/{k}": v for k, v in zip(leaves, gradients, strict=True)}
    for key, value in arrays.items():
        if value is None or not value.any():
            raise ValueError(f"{name}: the gradient in {key} is zero")
    for group, tensors in dict(
        inputs=inputs, weights=weights, outputs=outputs, cotangents=cotangents
    ).items():
        arrays |= {f"{group}/{k}": v for k, v in tensors.items()}
    for key, value in arrays.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name}: {key} is not finite")
    about = dict(source=made.source, seed=seed, settings=made.settings)
    path = folder / f"{name}.npz"
    np.savez_compressed(path, about=np.array(json.dumps(about)), **_numpy(arrays))
    return path.stat().st_size


def _leaves(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Differentiable copies, rounded to float32 numbers."""
    leaves = {}
    for key, array in _numpy(tensors).items():
        floating = array.dtype == np.float32
        leaf = torch.from_numpy(array.astype(np.float64) if floating else array)
        leaves[key] = leaf.requires_grad_(floating)
    return leaves


def _numpy(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    arrays = {k: v.detach().contiguous().numpy() for k, v in tensors.items()}
    return {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in arrays.items()}
