"""Gated DeltaProduct (arXiv 2502.10297): several delta-rule updates of the state per token."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear
from hybridlm.models.mixers.base import LayerSpec, SequenceContext
from hybridlm.models.mixers.delta import Delta, HeadDecay, NoDecay, Sizes
from hybridlm.models.mixers.gdn import GDNConfig
from hybridlm.models.norms import at_least_float32
from hybridlm.parallel import ops
from hybridlm.settings.bounds import PositiveInt, settings
from kernels_pallas import delta_rule
from kernels_pallas.delta_rule.product import delta_product


@settings
class DeltaProductConfig(GDNConfig):
    """Gated DeltaProduct: a product of Householder matrices as the state's transition at a token.

    Attributes:
      heads: query and key heads.
      value_heads: value heads, a multiple of `heads`; consecutive ones share a query/key head.
        None is `heads`.
      head_dim: size of a query and key head; None is 3/4 width / heads.
      value_dim: size of a value head; None is 2 `head_dim`.
      conv_width: taps of the convolutions on q, k and v.
      negative_eigenvalues: beta in (0, 2) instead of (0, 1). A beta above 1
        makes the eigenvalue along k negative; at 2 the update is a reflection, and the product of two
        reflections is a rotation.
      norm_eps: epsilon of the output norm; None is `model.norm_eps`.
      updates: updates of the state per token (n_h in the paper), each with a key, a value and a beta.
      decay: whether the state decays before a token's first update; False is DeltaProduct.
    """

    kind_name: ClassVar[str] = "delta_product"
    other_names: ClassVar[Mapping[str, str]] = {
        "gated_deltaproduct": "",
        "householder_product": "",
    }
    equation: ClassVar[str] = (
        "S <- a_t S_{t-1}, S <- S + b_tn k_tn (v_tn - S^T k_tn)^T for n = 1..N, S_t = S, o_t = S_t^T q_t"
    )
    source: ClassVar[str] = "arXiv 2502.10297 sec. 3"

    negative_eigenvalues: bool = True
    updates: PositiveInt = 2
    decay: bool = True

    @property
    def name(self) -> str:
        plural = "" if self.updates == 1 else "s"
        return (
            f"{'Gated ' if self.decay else ''}DeltaProduct, {self.updates} update{plural} a token"
        )

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "DeltaProduct":
        output = self.build_output(spec, rngs)
        decay = HeadDecay(spec.width, self.value_heads, rngs=rngs) if self.decay else NoDecay()
        return DeltaProduct(self, spec, decay, output, rngs=rngs)

    def updates_per_token(self) -> int:
        return self.updates

    def update_gates(self, sizes: Sizes) -> int:
        return self.updates * sizes.value_heads

    def gate_flops(self, width: int) -> int:
        sizes = self.sizes(width)
        return 2 * width * (self.decay * sizes.value_heads + sizes.values)


class DeltaProduct(Delta):
    """The mixer of `DeltaProductConfig`; the updates of a head lie side by side in channels."""

    def build_update(self, width: int, rngs: nnx.Rngs) -> None:
        betas = self.config.updates * self.sizes.value_heads
        self.beta = Linear(width, betas, ("embed", "heads"), rngs=rngs)

    def update(
        self,
        x_BTD: jax.Array,
        context: SequenceContext,
        q_BTI: jax.Array,
        k_BTI: jax.Array,
        v_BTI: jax.Array,
        **options: Any,
    ) -> tuple[jax.Array, delta_rule.DeltaRuleState]:
        def by_update(x: jax.Array) -> jax.Array:
            """(B, T, H * N, ...) -> (B, T, N, H, ...)"""
            x = x.reshape(*x.shape[:2], -1, self.config.updates, *x.shape[3:])
            return jnp.moveaxis(x, 3, 2)

        beta = self.largest_beta * jax.nn.sigmoid(at_least_float32(self.beta(x_BTD)))
        beta = context.hook("hook_beta", beta)
        return delta_product(
            ops.delta_rule,
            self.normed(q_BTI),
            *map(by_update, (self.normed(k_BTI), self.values(v_BTI), beta)),
            self.log_decay(x_BTD, context),
            **options,
        )
