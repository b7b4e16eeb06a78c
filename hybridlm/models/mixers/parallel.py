"""Within-layer hybrids: several mixers read the same input in parallel (Hymba, Falcon-H1)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import scale
from hybridlm.models.mixers import capabilities, rows
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.norms import RMSNorm
from hybridlm.settings.bounds import settings
from hybridlm.settings.names import nearest
from hybridlm.settings.reader import require, within


@settings
class ParallelConfig(MixerConfig):
    """A mixer made of mixers, e.g. attention and a recurrence on the same input.

    Attributes:
      branches: at least two mixers by name, each with its own `kind`; a branch may be "parallel".
      combine: "mean" of the branches' outputs after an RMSNorm with a learned scale per channel
        each (Hymba), or their "sum" with fixed multipliers (Falcon-H1).
      multipliers: factors on the outputs by branch name, for "sum"; a branch not named has 1.
      input_multipliers: factors on what branches read, by branch name; a branch not named has 1.
    """

    kind_name: ClassVar[str] = "parallel"
    other_names: ClassVar[Mapping[str, str]] = {
        "hymba": "",
        "falcon_h1": "",
        "parallel_hybrid": "",
        "hybrid_head": "",
    }
    holds_mixers: ClassVar[tuple[str, ...]] = ("branches",)
    equation: ClassVar[str] = "y = mean_i beta_i * rmsnorm(f_i(x)), or sum_i m_i f_i(x)"
    source: ClassVar[str] = "Hymba, arXiv 2411.13676 sec. 2.1; Falcon-H1, arXiv 2507.22448"

    branches: dict[str, MixerConfig]
    combine: Literal["mean", "sum"] = "mean"
    multipliers: dict[str, float] | None = None
    input_multipliers: dict[str, float] | None = None

    def __post_init__(self):
        names = sorted(self.branches)
        require(len(names) >= 2, "branches", f"must name at least two mixers, not {len(names)}")
        require(
            self.multipliers is None or self.combine == "sum",
            "multipliers",
            'goes with combine "sum": the norms of "mean" would undo them',
        )
        for key in ("multipliers", "input_multipliers"):
            for name in getattr(self, key) or ():
                require(name in names, f"{key}.{name}", f"is no branch: {nearest(name, names)}")
        # In the order of their names: equal configs have equal parameters.
        object.__setattr__(self, "branches", {name: self.branches[name] for name in names})

    def check_width(self, width: int) -> None:
        for name, branch in self.branches.items():
            with within(f"branches.{name}"):
                branch.check_width(width)

    def multiplier(self, branch: str) -> float:
        return (self.multipliers or {}).get(branch, 1.0)

    def input_multiplier(self, branch: str) -> float:
        return (self.input_multipliers or {}).get(branch, 1.0)

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "Parallel":
        return Parallel(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        return sum(b.flops_per_token(width, seq_len) for b in self.branches.values())

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        return sum(b.state_bytes(width, seq_len, itemsize) for b in self.branches.values())

    def head_counts(self, width: int) -> dict[str, int]:
        return {
            f"branches.{branch}.{name}": count
            for branch, config in self.branches.items()
            for name, count in config.head_counts(width).items()
        }

    def reach(self, seq_len: int) -> int | None:
        return max(branch.reach(seq_len) or 0 for branch in self.branches.values()) or None

    def cross_layer(self, width: int, depth: int) -> dict[str, tuple[int, ...]]:
        found = [branch.cross_layer(width, depth) for branch in self.branches.values()]
        return {name: shape for named in found for name, shape in named.items()}

    @property
    def has_loss(self) -> bool:
        return any(branch.has_loss for branch in self.branches.values())

    @property
    def mechanism(self) -> str:
        return " + ".join(f"({b.mechanism})" for b in self.branches.values())


class Parallel(Mixer):
    """combine(branch_1(x), branch_2(x), ...): the mixer of `ParallelConfig`.

    Its state is a dict of the branches' states.
    """

    def __init__(self, config: ParallelConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        combine = {"mean": NormedMean, "sum": WeightedSum}[config.combine]
        self.config = config
        self.combine = combine(config, spec)
        branch_spec = self.combine.branch_spec(spec)
        self.inputs = nnx.Dict({n: scale(config.input_multiplier(n)) for n in config.branches})
        self.branches = nnx.Dict(
            {name: branch.build(branch_spec, rngs=rngs) for name, branch in config.branches.items()}
        )

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self._combined(x_BTD, context, lambda f, x_BTD, own: (f(x_BTD, own), None))[0]

    def with_loss(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        y_BTD, losses = self._combined(
            x_BTD, context, lambda f, x_BTD, own: f.with_loss(x_BTD, own)
        )
        return y_BTD, sum(losses.values())

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> dict[str, Any]:
        """The branches' states before any token, by name."""
        names = self.config.branches
        return {n: self.branches[n].init_state(batch, max_len, dtype) for n in names}

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: dict[str, Any]
    ) -> tuple[jax.Array, dict[str, Any]]:
        outputs, new_state = {}, {}
        for name, branch, read_BTD in self._reading(x_BTD):
            outputs[name], new_state[name] = branch.extend(
                read_BTD, context.within(name), state[name]
            )
        return self.combine(outputs), new_state

    @property
    def attention_heads(self) -> int:
        """The sum over branches; heads are numbered through, in the order of branches."""
        return sum(capabilities.attention_heads(branch) for branch in self._ordered())

    def attention_rows(
        self, x_BTD: jax.Array, context: SequenceContext, rows_BQ: jax.Array
    ) -> rows.AttentionRows:
        return rows.concatenated(
            [
                branch.attention_rows(x_BTD, context, rows_BQ)
                for _, branch, x_BTD in self._reading(x_BTD)
                if capabilities.attends(branch)
            ]
        )

    def query_key_weights(self) -> tuple[jax.Array, jax.Array]:
        """Rows are as long as the longest branch's; shorter ones are filled with zeros."""
        q, k = zip(*(branch.query_key_weights() for branch in self._attending()))
        return _stacked(q), _stacked(k)

    def scale_heads(self, scale_H: jax.Array) -> None:
        first = 0
        for branch in self._attending():
            branch.scale_heads(scale_H[first : first + branch.attention_heads])
            first += branch.attention_heads

    @property
    def slot_heads(self) -> int:
        """The sum over branches, in the order of branches."""
        return sum(capabilities.slot_heads(branch) for branch in self._ordered())

    def slot_share(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        shares = [
            branch.slot_share(x_BTD, context)
            for _, branch, x_BTD in self._reading(x_BTD)
            if capabilities.has_slots(branch)
        ]
        return jnp.concatenate(shares, axis=2)

    @property
    def has_window(self) -> bool:
        """Whether every branch has one: a branch without would still see all tokens."""
        return all(capabilities.has_window(branch) for branch in self._ordered())

    def narrowed(self, window: int) -> "Parallel":
        copy = nnx.clone(self)
        narrowed = {n: capabilities.narrowed(b, window) for n, b in self.branches.items()}
        copy.branches = nnx.Dict(narrowed)
        return copy

    def _combined(
        self, x_BTD: jax.Array, context: SequenceContext, run: Callable[..., Any]
    ) -> tuple[jax.Array, dict[str, Any]]:
        """The combined outputs, and the second results of `run(branch, input, context)` by branch."""
        outputs, found = {}, {}
        for name, branch, read_BTD in self._reading(x_BTD):
            own = context.within(name)
            y_BTD, found[name] = run(branch, own.hook("hook_in", read_BTD), own)
            outputs[name] = own.hook("hook_out", y_BTD)
        return self.combine(outputs), found

    def _reading(self, x_BTD: jax.Array) -> list[tuple[str, Mixer, jax.Array]]:
        """(name, branch, what it reads) of each branch."""
        return [(n, self.branches[n], self.inputs[n](x_BTD)) for n in self.config.branches]

    def _ordered(self) -> list[Mixer]:
        return [self.branches[name] for name in self.config.branches]

    def _attending(self) -> list[capabilities.Attends]:
        return [branch for branch in self._ordered() if capabilities.attends(branch)]


def _stacked(parts: Sequence[jax.Array]) -> jax.Array:
    longest = max(part.shape[1] for part in parts)
    filled = [jnp.pad(p, ((0, 0), (0, longest - p.shape[1]))) for p in parts]
    return jnp.concatenate(filled, axis=0)


class NormedMean(nnx.Module):
    """mean_i beta_i * rmsnorm(y_i): branches start with equal weight, whatever their magnitude.

    The norms undo the initial scale of the branches' output projections, so beta starts at that
    scale instead.
    """

    def __init__(self, config: ParallelConfig, spec: LayerSpec):
        self.norms = nnx.Dict({n: RMSNorm(spec.width, spec.norm_eps) for n in config.branches})
        for norm in self.norms.values():
            norm.scale[...] = norm.scale[...] * spec.out_scale

    def branch_spec(self, spec: LayerSpec) -> LayerSpec:
        return spec._replace(out_scale=1.0)

    def __call__(self, outputs: dict[str, jax.Array]) -> jax.Array:
        return sum(self.norms[n](y_BTD) for n, y_BTD in outputs.items()) / len(outputs)


class WeightedSum(nnx.Module):
    """sum_i m_i y_i with fixed multipliers."""

    def __init__(self, config: ParallelConfig, spec: LayerSpec):
        del spec
        self.config = config

    def branch_spec(self, spec: LayerSpec) -> LayerSpec:
        return spec

    def __call__(self, outputs: dict[str, jax.Array]) -> jax.Array:
        return sum(y_BTD * self.config.multiplier(n) for n, y_BTD in outputs.items())
