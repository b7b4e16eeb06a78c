"""DeltaNet (arXiv 2102.11174; its chunked form and this layer, arXiv 2406.06484)."""

from collections.abc import Mapping
from typing import ClassVar

from flax import nnx

from hybridlm.models.mixers.base import LayerSpec
from hybridlm.models.mixers.delta import Delta, DeltaConfig, HeadNorm, NoDecay, Sizes
from hybridlm.models.mixers.parts import ConvWidth
from hybridlm.settings.bounds import PositiveInt, settings


@settings
class DeltaNetConfig(DeltaConfig):
    """DeltaNet: a linear-attention state that overwrites what it holds for a key.

    Attributes:
      heads: heads, of keys and values alike.
      head_dim: size of a query and key head; None is width // heads.
      value_dim: size of a value head; None is `head_dim`.
      conv_width: taps of the convolutions on q, k and v.
      negative_eigenvalues: beta in (0, 2) instead of (0, 1), so that a key's content may flip
        its sign (arXiv 2411.12537).
    """

    kind_name: ClassVar[str] = "deltanet"
    other_names: ClassVar[Mapping[str, str]] = {
        "delta_net": "",
        "delta": "",
        "delta_rule": "",
    }
    head_settings: ClassVar[tuple[str, ...]] = ("heads",)
    equation: ClassVar[str] = "S_t = S_{t-1} + b_t k_t (v_t - S_{t-1}^T k_t)^T, o_t = S_t^T q_t"
    source: ClassVar[str] = "arXiv 2406.06484 sec. 2.2, 3.3"
    operations: ClassVar[tuple[str, ...]] = ("causal_conv", "delta_rule")
    name: ClassVar[str] = "DeltaNet"

    heads: PositiveInt
    head_dim: PositiveInt | None = None
    value_dim: PositiveInt | None = None
    conv_width: ConvWidth = 4
    negative_eigenvalues: bool = False

    def sizes(self, width: int) -> Sizes:
        key_size = self.head_dim or width // self.heads
        return Sizes(self.heads, self.heads, key_size, self.value_dim or key_size)

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> Delta:
        output = HeadNorm(self.sizes(spec.width).value_size, spec.norm_eps)
        return Delta(self, spec, NoDecay(), output, rngs=rngs)

    def gate_flops(self, width: int) -> int:
        return 0
