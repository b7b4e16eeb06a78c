"""Gated DeltaNet (arXiv 2412.06464), as in Qwen3-Next and OLMo Hybrid."""

from collections.abc import Mapping
from typing import ClassVar

import jax
from flax import nnx

from hybridlm.models.layers import Linear
from hybridlm.models.mixers.base import LayerSpec
from hybridlm.models.mixers.delta import Delta, GatedHeadNorm, HeadDecay, SharedKeysConfig, Sizes
from hybridlm.models.mixers.parts import ConvWidth
from hybridlm.settings.bounds import Epsilon, PositiveInt, settings
from hybridlm.settings.reader import require


@settings
class GDNConfig(SharedKeysConfig):
    """Gated DeltaNet: the delta rule with one data-dependent decay per value head.

    Attributes:
      heads: query and key heads.
      value_heads: value heads, a multiple of `heads`; consecutive ones share a query/key head.
        None is `heads`.
      head_dim: size of a query and key head; None is 3/4 width / heads, which with the default
        `value_dim` gives a layer of about 6 width^2 parameters.
      value_dim: size of a value head; None is 2 `head_dim`.
      conv_width: taps of the convolutions on q, k and v.
      negative_eigenvalues: beta in (0, 2) instead of (0, 1), so that a key's content may flip
        its sign (arXiv 2411.12537).
      norm_eps: epsilon of the output norm; None is `model.norm_eps`. OLMo Hybrid's is 1e-5.
    """

    kind_name: ClassVar[str] = "gdn"
    other_names: ClassVar[Mapping[str, str]] = {
        "gated_deltanet": "",
        "gated_delta_net": "",
        "gated_delta": "",
        "gated_delta_rule": "",
    }
    head_settings: ClassVar[tuple[str, ...]] = ("heads", "value_heads")
    equation: ClassVar[str] = (
        "S_t = a_t S_{t-1} + b_t k_t (v_t - a_t S_{t-1}^T k_t)^T, o_t = S_t^T q_t"
    )
    source: ClassVar[str] = "arXiv 2412.06464 sec. 3"
    operations: ClassVar[tuple[str, ...]] = ("causal_conv", "delta_rule")
    name: ClassVar[str] = "Gated DeltaNet"

    heads: PositiveInt
    value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    value_dim: PositiveInt | None = None
    conv_width: ConvWidth = 4
    negative_eigenvalues: bool = False
    norm_eps: Epsilon | None = None

    def check_width(self, width: int) -> None:
        require(
            self.head_dim is not None or 3 * width % (4 * self.heads) == 0,
            "heads",
            f"is {self.heads} and does not divide 3/4 of model.width {width}: set head_dim",
        )

    def sizes(self, width: int) -> Sizes:
        key_size = self.head_dim or 3 * width // (4 * self.heads)
        return Sizes(self.heads, self.value_heads, key_size, self.value_dim or 2 * key_size)

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> Delta:
        output = self.build_output(spec, rngs)
        decay = HeadDecay(spec.width, self.value_heads, rngs=rngs)
        return Delta(self, spec, decay, output, rngs=rngs)

    def build_output(self, spec: LayerSpec, rngs: nnx.Rngs) -> GatedHeadNorm:
        """The output's norm and gate."""
        sizes = self.sizes(spec.width)
        gate = Linear(spec.width, sizes.values, ("embed", "heads"), rngs=rngs)
        return GatedHeadNorm(sizes.value_size, self.norm_eps or spec.norm_eps, gate, jax.nn.silu)

    def gate_flops(self, width: int) -> int:
        sizes = self.sizes(width)
        return 2 * width * (sizes.value_heads + sizes.values)
