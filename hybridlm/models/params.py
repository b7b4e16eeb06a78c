"""Parameters as a nested dict of arrays, made once and bound to a module inside the step."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from hybridlm.models import stack
from hybridlm.models.lm import HybridLM
from hybridlm.models.observed import Rule
from hybridlm.models.settings import ModelConfig

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """A HybridLM without arrays: its graph and the shapes of its parameters.

    Attributes:
      config: the model's settings.
      graphdef, state: the module as `nnx.split` gives it, with abstract arrays.
      abstract: nested dict of `jax.ShapeDtypeStruct`, with the structure of the parameters.
      axes: the same structure, with a tuple of logical axis names for each array.
      decay: the same structure; True for parameters that weight decay applies to.
      muon: the same structure; True for parameters that Muon may update. See
        `hybridlm.models.layers`.
      names: the same structure; a tuple of the names of the parameters in each array, one for each
        layer that shares it (see `hybridlm.models.stack.names`).
      rules: by path, how the parameters move that no gradient trains; see
        `hybridlm.models.observed`.
    """

    config: ModelConfig
    graphdef: Any
    state: Any
    abstract: Params
    axes: Params
    decay: Params
    muon: Params
    names: Params
    rules: dict[tuple[str, ...], Rule] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, config: ModelConfig) -> "Model":
        """Traces the model; uses no device and makes no parameters."""
        module = nnx.eval_shape(lambda: HybridLM(config, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(module)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(state)
        )
        axes, decay, muon, names, rules = {}, {}, {}, {}, {}
        for path, variable in nnx.to_flat_state(state):
            known = variable.get_metadata()
            _insert(axes, path, stack.logical_axes(path, known["axes"]))
            _insert(decay, path, known.get("decay", False))
            _insert(muon, path, known.get("muon", False))
            _insert(names, path, stack.names(path, config.layout))
            if "rule" in known:
                rules[path] = known["rule"]
        return cls(config, graphdef, state, abstract, axes, decay, muon, names, rules)

    def init(self, key: jax.Array) -> Params:
        """Initial float32 parameters, which depend on `key` alone; works under jit."""
        return nnx.to_pure_dict(nnx.state(HybridLM(self.config, rngs=nnx.Rngs(key))))

    def bind(self, params: Params) -> HybridLM:
        """The module with these parameters; cheap, and meant for use inside jitted functions."""
        state = jax.tree.map(lambda x: x, self.state)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self.graphdef, state)

    def layer(self, params: Params, index: int) -> Params:
        """The parameters of layer `index`, as a nested dict."""
        return stack.layer_params(params, self.addresses[index])

    def with_layer(self, params: Params, index: int, new: Params) -> Params:
        """A copy of `params` in which layer `index` has the parameters `new`."""
        return stack.with_layer(params, self.addresses[index], new)

    def layer_shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters of layer `index`, by path in the layer ("mixer/q/kernel")."""
        return stack.layer_shapes(self.abstract, self.addresses[index])

    def by_name(self, params: Params) -> dict[str, Any]:
        """Each parameter by its name, a layer's own without the axis of the scan.

        The names do not depend on how layers are stacked, so parameters of models with other
        patterns can be compared. The order is that of the forward pass.

        Args:
          params: nested as the parameters are; arrays, or `abstract`.
        """
        layers = {
            ".".join(("layers", str(i), *path)): value
            for i in range(self.config.depth)
            for path, value in flatten_dict(self.layer(params, i)).items()
        }
        rest = {k: v for k, v in params.items() if k not in stack.GROUPS}
        above = {".".join(path): v for path, v in flatten_dict(rest).items()}
        first = {"embedding": above.pop("embedding")}
        return {**first, **layers, **above}

    def from_names(self, named: dict[str, Any]) -> Params:
        """The inverse of `by_name`, for numpy arrays of all parameters."""
        params = {}
        for path, names in flatten_dict(self.names).items():
            rows = [np.asarray(named[name]) for name in names]
            params[path] = np.stack(rows) if path[0] == stack.UNIT else rows[0]
        return unflatten_dict(params)

    @property
    def addresses(self) -> tuple[stack.Address, ...]:
        """The address of each layer's parameters, bottom to top."""
        return stack.addresses(self.config.layout)

    def count(self, *, embeddings: bool = True) -> int:
        """The number of parameters, optionally without the embedding and an untied head."""
        tree = self.abstract
        if not embeddings:
            tree = {k: v for k, v in tree.items() if k not in ("embedding", "head")}
            if "per_layer" in tree:
                below = {k: v for k, v in tree["per_layer"].items() if k != "embedding"}
                tree = tree | {"per_layer": below}
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def _insert(tree: Params, path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
