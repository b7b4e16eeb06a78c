"""The experts of a mixture: feed-forwards side by side, computed on rows sorted by expert."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from hybridlm.models.feedforward.dense import ACTIVATIONS
from hybridlm.parallel.experts import Arrays, is_first_of_tensor
from kernels_pallas.grouped_matmul import grouped_matmul, one_hot_groups


class Form(NamedTuple):
    """What an expert computes; see `MoEConfig`."""

    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    clamp: float | None = None
    gate_slope: float = 1.0
    up_offset: float = 0.0

    @property
    def into(self) -> tuple[str, ...]:
        """The linear maps into the hidden layer."""
        return ("gate", "up") if self.gated else ("up",)

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """The logical axes of the experts' parameters, by name."""
        axes = {name: ("experts", "expert_embed", "mlp") for name in self.into}
        axes["down"] = ("experts", "mlp", "expert_embed")
        if self.bias:
            axes |= {f"{name}_bias": ("experts", "mlp") for name in self.into}
            axes["down_bias"] = ("experts", "expert_out")
        return axes

    def hidden(self, *inputs: jax.Array) -> jax.Array:
        """The hidden layer, from what the maps of `into` give."""
        act = ACTIVATIONS[self.activation]
        if not self.gated:
            return act(*inputs)
        gate, up = inputs
        if self.clamp is not None:
            gate = jnp.minimum(gate, self.clamp)
            up = jnp.clip(up, -self.clamp, self.clamp)
        if self.gate_slope == 1:
            gate = act(gate)
        else:
            gate = gate * jax.nn.sigmoid(self.gate_slope * gate)
        return gate * (up + self.up_offset if self.up_offset else up)


class Experts(nnx.Module):
    """down(hidden(gate x, up x)), or down(hidden(up x)), of each expert.

    Attributes:
      gate, up: (E, D, F), `gate` in gated experts only; down: (E, F, D).
      gate_bias, up_bias: (E, F), down_bias: (E, D), in experts with biases only.
    """

    def __init__(
        self,
        form: Form,
        experts: int,
        width: int,
        hidden: int,
        *,
        out_scale: float,
        rngs: nnx.Rngs,
    ):
        self.form = form
        sizes = {"experts": experts, "expert_embed": width, "expert_out": width, "mlp": hidden}
        for name, axes in form.axes.items():
            shape = tuple(sizes[axis] for axis in axes)
            if name.endswith("_bias"):
                setattr(self, name, nnx.Param(jnp.zeros(shape), axes=axes))
                continue
            scale = shape[1] ** -0.5 * (out_scale if name == "down" else 1)
            kernel = jax.random.normal(rngs.params(), shape) * scale
            setattr(self, name, nnx.Param(kernel, axes=axes, decay=True, muon=True))

    def parameters(self) -> dict[str, jax.Array]:
        """By name, for `run`."""
        return {name: getattr(self, name)[...] for name in self.form.axes}

    @property
    def run(self) -> Callable[..., jax.Array]:
        """A function of rows sorted by expert: see `hybridlm.parallel.experts.Run`."""
        return functools.partial(_run, self.form)


def _run(
    form: Form,
    x_XD: jax.Array,
    sizes_E: jax.Array,
    parameters: Arrays,
    split: Mapping[str, tuple[int, str]],
) -> jax.Array:
    groups_XE = None
    if form.bias:
        groups_XE = one_hot_groups(x_XD.shape[0], sizes_E)

    def linear(name: str, x_XD: jax.Array, once: jax.Array | bool = True) -> jax.Array:
        y_XF = grouped_matmul(x_XD, parameters[name], sizes_E, split.get(name))
        y_XF = checkpoint_name(y_XF, "expert_product")
        if groups_XE is None:
            return y_XF
        bias_EF = parameters[f"{name}_bias"].astype(y_XF.dtype)
        # A product with one-hot rows: the gradient of a gather would be a scatter.
        added_XF = jnp.dot(groups_XE.astype(y_XF.dtype), bias_EF)
        return y_XF + jnp.where(once, added_XF, 0)

    into = [linear(name, x_XD) for name in form.into]
    return linear("down", form.hidden(*into), is_first_of_tensor())
