"""Mixtures of experts: a router sends each token to a few feed-forwards of many."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.feedforward.base import FeedForward, FeedForwardConfig
from hybridlm.models.feedforward.dense import (
    ActivationName,
    GatedConfig,
    PlainConfig,
)
from hybridlm.models.feedforward.experts import Experts, Form
from hybridlm.models.feedforward.routing import Router, RouterConfig, Routes
from hybridlm.models.layers import Linear
from hybridlm.models.mixers.base import LayerSpec, SequenceContext
from hybridlm.parallel.experts import Mixture, mix_experts
from hybridlm.settings.bounds import (
    Above,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    settings,
)
from hybridlm.settings.reader import require, within


@settings
class MoEConfig(FeedForwardConfig):
    """A mixture of experts: each token goes to `top_k` of `experts` feed-forwards.

    No expert has a capacity, so no token is dropped and its output does not depend on the batch that
    it stands in. Padding goes to no expert.

    Attributes:
      experts: number of routed experts.
      top_k: experts of a token.
      hidden: size of an expert's hidden layer.
      activation: of the experts, routed and shared.
      gated: whether experts are gated (three matrices) or plain (two, Nemotron).
      bias: whether routed experts have biases (gpt-oss).
      clamp: limit of a gated expert's gate (from above) and of its other factor (on both sides), of
        the shared expert, too; 7 in gpt-oss.
      gate_slope: with activation "silu", the gate is g * sigmoid(gate_slope * g); 1.702 in gpt-oss.
      up_offset: added to a gated expert's other factor; 1 in gpt-oss.
      weigh: what the router's weights multiply: the experts' "output", or their "input" (Llama 4).
      router: how tokens choose and weigh experts.
      shared_hidden: size of the hidden layer of an expert that every token goes to; several shared
        experts are one of their sizes' sum. None for no shared expert.
      shared_gate: whether the shared expert's output is multiplied by the sigmoid of a linear map of
        the token (Qwen2-MoE, Qwen3-Next).
      latent: size that routed experts work in, between two linear maps that all of them share
        (Nemotron 3); None is the width of the residual stream.
      balance_weight: weight of the load-balance loss (Switch Transformer, arXiv 2101.03961 eq. 4): the
        number of experts times the sum over experts of their part of the assignments times their mean
        score. It is 1 where tokens spread evenly, whatever top_k is.
      z_weight: weight of the router's z-loss, the mean squared log-sum-exp of the logits (ST-MoE,
        arXiv 2202.08906 eq. 5).
    """

    kind_name: ClassVar[str] = "moe"
    other_names: ClassVar[Mapping[str, str]] = {
        "mixture_of_experts": "",
        "sparse_moe": "",
        "switch": "top_k=1",
        "mixtral": "",
        "deepseek_moe": "shared_hidden=...",
    }
    equation: ClassVar[str] = "y = sum_{e in top-k} w_e(x) f_e(x) + f_shared(x)"
    source: ClassVar[str] = "arXiv 1701.06538; 2401.06066 (shared experts)"

    experts: PositiveInt
    top_k: PositiveInt
    hidden: PositiveInt
    activation: ActivationName = "silu"
    gated: bool = True
    bias: bool = False
    clamp: Annotated[float, Above(0, none="for no limit")] | None = None
    gate_slope: PositiveFloat = 1.0
    up_offset: NonNegativeFloat = 0.0
    weigh: Literal["output", "input"] = "output"
    router: RouterConfig = RouterConfig()
    shared_hidden: PositiveInt | None = None
    shared_gate: bool = False
    latent: PositiveInt | None = None
    balance_weight: NonNegativeFloat = 0.0
    z_weight: NonNegativeFloat = 0.0

    def __post_init__(self):
        require(
            self.top_k <= self.experts,
            "top_k",
            f"is {self.top_k}, and there are {self.experts} experts",
        )
        for name, off in (("clamp", None), ("gate_slope", 1), ("up_offset", 0)):
            require(
                self.gated or getattr(self, name) == off,
                name,
                "is of gated experts: set gated=True, or leave it out",
            )
        require(
            self.gate_slope == 1 or self.activation == "silu",
            "gate_slope",
            f'goes with activation "silu", not {self.activation!r}',
        )
        require(
            not self.shared_gate or self.shared_hidden is not None,
            "shared_gate",
            "is of a shared expert, and there is none: set shared_hidden",
        )
        with within("router"):
            self.router.check_experts(self.experts, self.top_k)

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "MoE":
        return MoE(self, spec, rngs=rngs)

    @property
    def form(self) -> Form:
        """What a routed expert computes."""
        return Form(**{name: getattr(self, name) for name in Form._fields})

    @property
    def shared(self) -> GatedConfig | PlainConfig | None:
        """The shared expert's settings."""
        if self.shared_hidden is None:
            return None
        if self.gated:
            return GatedConfig(self.shared_hidden, self.activation, clamp=self.clamp)
        return PlainConfig(self.shared_hidden, self.activation)

    @property
    def _matrices(self) -> int:
        return 3 if self.gated else 2

    def _routed(self, width: int) -> int:
        """Parameters of one routed expert."""
        size = self.latent or width
        biases = (self._matrices - 1) * self.hidden + size if self.bias else 0
        return self._matrices * size * self.hidden + biases

    def _dense(self, width: int) -> int:
        """Entries of the matrices that every token is multiplied by."""
        shared = self._matrices * width * (self.shared_hidden or 0)
        gate = width if self.shared_gate else 0
        return width * self.experts + 2 * width * (self.latent or 0) + shared + gate

    def _used(self, width: int, experts: int) -> int:
        router = self.router
        vectors = self.experts * (router.bias + router.choice_bias + router.expert_scale)
        vectors += width * router.input_norm
        return experts * self._routed(width) + self._dense(width) + vectors

    def parameters(self, width: int) -> int:
        return self._used(width, self.experts)

    def active_parameters(self, width: int) -> int:
        return self._used(width, self.top_k)

    def flops_per_token(self, width: int) -> float:
        routed = self.top_k * self._matrices * (self.latent or width) * self.hidden
        return 2.0 * (routed + self._dense(width))

    def kept_per_token(self, width: int) -> int:
        copies = self.top_k * (self.latent or width)  # of the token, one for each of its experts
        return copies + self._matrices * (self.top_k * self.hidden + (self.shared_hidden or 0))

    @property
    def has_loss(self) -> bool:
        return bool(self.balance_weight or self.z_weight)

    @property
    def mechanism(self) -> str:
        shared = "" if self.shared_hidden is None else " + shared"
        return f"moe, {self.top_k} of {self.experts}{shared}"


class MoE(FeedForward):
    """The module of `MoEConfig`."""

    def __init__(self, config: MoEConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        width = spec.width
        size = config.latent or width
        self.config = config
        self.router = Router(
            config.router,
            width,
            config.experts,
            config.top_k,
            norm_eps=spec.norm_eps,
            rngs=rngs,
        )
        self.experts = Experts(
            config.form,
            config.experts,
            size,
            config.hidden,
            out_scale=1.0 if config.latent else spec.out_scale,
            rngs=rngs,
        )

        def linear(d_in: int, d_out: int, *axes: str, **options: Any) -> Linear:
            return Linear(d_in, d_out, axes, rngs=rngs, **options)

        latent, scale = config.latent is not None, spec.out_scale
        self.into_latent = linear(width, size, "embed", "latent") if latent else None
        self.from_latent = linear(size, width, "latent", "embed", scale=scale) if latent else None
        self.shared = None if config.shared is None else config.shared.build(spec, rngs=rngs)
        self.shared_gate = (
            linear(width, 1, "embed", "one", muon=False) if config.shared_gate else None
        )

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.mix(x_BTD, context, self.router(x_BTD, context.segment_ids_BT))

    def with_loss(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        return self.routed(x_BTD, x_BTD, context)

    def routed(
        self, x_BTD: jax.Array, routed_by_BTD: jax.Array, context: SequenceContext
    ) -> tuple[jax.Array, jax.Array]:
        """The output and the loss of `with_loss`, where the router reads `routed_by_BTD` instead."""
        routes = self.router(routed_by_BTD, context.segment_ids_BT)
        loss = _loss(self.config, routes, context.segment_ids_BT != 0)
        return self.mix(x_BTD, context, routes), loss

    def mix(self, x_BTD: jax.Array, context: SequenceContext, routes: Routes) -> jax.Array:
        """The output, from the tokens and where they go."""
        config, experts = self.config, self.experts
        routes = routes._replace(
            chosen_BTK=context.hook("hook_expert_indices", routes.chosen_BTK),
            weights_BTK=context.hook("hook_expert_weights", routes.weights_BTK),
        )
        mixture = Mixture(experts.run, config.experts, experts.form.axes, config.weigh == "input")
        z_BTD = x_BTD if self.into_latent is None else self.into_latent(x_BTD)
        y_BTD = mix_experts(
            mixture, z_BTD, routes.chosen_BTK, routes.weights_BTK, experts.parameters()
        )
        if self.from_latent is not None:
            y_BTD = self.from_latent(y_BTD)
        if self.shared is None:
            return y_BTD
        shared_BTD = self.shared(x_BTD, context.within("shared"))
        if self.shared_gate is not None:
            shared_BTD = jax.nn.sigmoid(self.shared_gate(x_BTD)) * shared_BTD
        return y_BTD + shared_BTD


def _loss(config: MoEConfig, routes: Routes, real_BT: jax.Array) -> jax.Array:
    """The weighted losses: means over real tokens, of whichever documents."""
    real_BT1 = real_BT[..., None]
    tokens = jnp.maximum(jnp.sum(real_BT), 1)
    loss = jnp.zeros((), routes.logits_BTE.dtype)
    if config.balance_weight:
        mean_E = jnp.sum(jnp.where(real_BT1, routes.shares_BTE, 0), axis=(0, 1)) / tokens
        load_E = routes.counts_E / (tokens * config.top_k)
        loss += config.balance_weight * config.experts * jnp.sum(load_E * mean_E)
    if config.z_weight:
        z_BT = jax.nn.logsumexp(routes.logits_BTE, axis=-1)
        loss += config.z_weight * jnp.sum(jnp.where(real_BT, z_BT**2, 0)) / tokens
    return loss
