"""Routers: which experts a token goes to, and with what weights."""

import dataclasses
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.norms import RMSNorm, along_last, at_least_float32
from hybridlm.models.observed import observe
from hybridlm.settings.bounds import (
    AtLeast,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    settings,
)
from hybridlm.settings.reader import require

ScoreName = Literal["softmax", "softmax_chosen", "sigmoid"]


@settings
class RouterConfig:
    """How a mixture of experts chooses and weighs experts; always in float32.

    A token's logits are a linear map of it. Scores are made from the logits, the `top_k` highest are
    chosen, and the weights of the chosen experts are their scores.

    Attributes:
      scores: "softmax" over all experts (Mixtral, Qwen), "softmax_chosen" over the chosen ones, which
        are those of the highest logits (gpt-oss, Granite), or the "sigmoid" of each logit
        (DeepSeek-V3, Llama 4).
      normalize: divide the weights by their sum.
      normalize_eps: added to that sum: 1e-20 in DeepSeek-V3, 1e-6 in LFM2, 0 in Mixtral and Qwen.
      scale: factor on the weights, after the division (DeepSeek's routed scaling factor).
      input_norm: the logits are a linear map of the token, RMS-normed, times a learned scale over
        sqrt(width) (Gemma 4).
      expert_scale: multiply the weight of each expert, last, by a learned scale (Gemma 4).
      bias: add a learned bias to the logits (gpt-oss).
      choice_bias: choose by the scores plus a bias for each expert, and weigh by the scores alone
        (DeepSeek-V3, arXiv 2412.19437 sec. 2.1.2). No gradient trains the bias.
      choice_bias_rate: after each update the bias of an expert that had fewer tokens than the mean
        rises by this, and that of one that had more falls by it (arXiv 2408.15664); 0.001 in
        DeepSeek-V3. 0 leaves the bias as it is.
      groups: equal groups of neighbouring experts; more than 1 choose groups first.
      top_groups: how many groups a token may choose experts from.
      group_score: what groups are chosen by: the sum of their two best experts ("top2",
        DeepSeek-V3) or their best ("max", DeepSeek-V2).
    """

    scores: ScoreName = "softmax"
    normalize: bool = False
    normalize_eps: NonNegativeFloat = 0.0
    scale: PositiveFloat = 1.0
    input_norm: bool = False
    expert_scale: bool = False
    bias: bool = False
    choice_bias: bool = False
    choice_bias_rate: Annotated[float, AtLeast(0, note="to leave the bias as it is")] = 0.0
    groups: PositiveInt = 1
    top_groups: PositiveInt = 1
    group_score: Literal["top2", "max"] = "top2"

    def __post_init__(self):
        require(
            self.choice_bias or not self.choice_bias_rate,
            "choice_bias_rate",
            "moves a bias that there is not: set choice_bias=True too",
        )
        require(
            self.top_groups <= self.groups,
            "top_groups",
            f"is {self.top_groups}, and there are {self.groups} groups",
        )
        require(
            not (self.choice_bias or self.groups > 1) or self.scores != "softmax_chosen",
            "scores",
            'is "softmax_chosen", whose experts are those of the highest logits: with a choice_bias'
            ' or groups use "softmax" or "sigmoid"',
        )

    def check_experts(self, experts: int, top_k: int) -> None:
        """Raises `Invalid` where the groups do not fit this many experts."""
        size = experts // self.groups
        require(
            experts % self.groups == 0,
            "groups",
            f"is {self.groups} and does not divide the {experts} experts",
        )
        require(
            self.groups == 1 or self.group_score == "max" or size >= 2,
            "group_score",
            f'"top2" adds a group\'s two best, and a group has {size} expert: use "max"',
        )
        require(
            top_k <= self.top_groups * size or self.groups == 1,
            "top_groups",
            f"{self.top_groups} of {size} experts each have fewer than top_k {top_k}",
        )


class Routes(NamedTuple):
    """Where the tokens go.

    Attributes:
      chosen_BTK: int32, K different experts of each token; E, the number of experts, at padding.
      weights_BTK: float32, 0 at padding.
      logits_BTE: float32, of the router.
      shares_BTE: float32, scores that add up to 1 over the experts of a token.
    """

    chosen_BTK: jax.Array
    weights_BTK: jax.Array
    logits_BTE: jax.Array
    shares_BTE: jax.Array

    @property
    def counts_E(self) -> jax.Array:
        """The tokens of each expert, int32; a token counts for each of its K experts."""
        experts = self.logits_BTE.shape[-1]
        return jnp.sum(jax.nn.one_hot(self.chosen_BTK, experts, dtype=jnp.int32), axis=(0, 1, 2))


@dataclasses.dataclass(frozen=True)
class BalanceRule:
    """Moves the bias of the choice towards an even load (arXiv 2408.15664, algorithm 1).

    Attributes:
      rate: by which the bias of each expert rises or falls.
    """

    rate: float

    def __call__(self, bias_E: jax.Array, counts_E: jax.Array) -> jax.Array:
        mean_1 = jnp.mean(counts_E, axis=-1, keepdims=True)
        return bias_E + self.rate * jnp.sign(mean_1 - counts_E)

    def metrics(self, counts_E: jax.Array) -> dict[str, jax.Array]:
        """`expert_violation`: the highest load over the mean load, minus 1 (MaxVio, section 4.1)."""
        mean_1 = jnp.mean(counts_E, axis=-1, keepdims=True)
        return {"expert_violation": jnp.max(counts_E / jnp.maximum(mean_1, 1e-9)) - 1}


class Router(nnx.Module):
    """The router of `RouterConfig`.

    No gradient trains the bias of the choice. With a rate, `BalanceRule` moves it.
    """

    def __init__(
        self,
        config: RouterConfig,
        width: int,
        experts: int,
        top_k: int,
        *,
        norm_eps: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        kernel = jax.random.normal(rngs.params(), (width, experts)) * width**-0.5
        self.kernel = nnx.Param(kernel, axes=("embed", "router"), decay=True)
        self.bias = nnx.Param(jnp.zeros(experts), axes=("router",)) if config.bias else None
        rate = config.choice_bias_rate
        rule = dict(rule=BalanceRule(rate)) if rate else {}
        self.choice_bias = (
            nnx.Param(jnp.zeros(experts), axes=("router",), **rule) if config.choice_bias else None
        )
        self.norm = RMSNorm(width, norm_eps) if config.input_norm else None
        self.expert_scale = (
            nnx.Param(jnp.ones(experts), axes=("router",)) if config.expert_scale else None
        )
        self.config, self.top_k = config, top_k

    def __call__(self, x_BTD: jax.Array, segment_ids_BT: jax.Array) -> Routes:
        """Routes each token by itself; padding goes nowhere."""
        x_BTD = at_least_float32(x_BTD)
        if self.norm is not None:
            x_BTD = self.norm(x_BTD) * x_BTD.shape[-1] ** -0.5
        logits_BTE = jnp.dot(
            x_BTD, self.kernel[...].astype(x_BTD.dtype), precision=jax.lax.Precision.HIGHEST
        )
        if self.bias is not None:
            logits_BTE += along_last(self.bias[...], logits_BTE).astype(x_BTD.dtype)
        scores_BTE = _SCORES[self.config.scores](logits_BTE)
        chosen_BTK = self._choose(logits_BTE, scores_BTE)
        weights_BTK = self._weigh(logits_BTE, scores_BTE, chosen_BTK)
        real_BT1 = (segment_ids_BT != 0)[..., None]
        if self.config.scores == "sigmoid":
            shares_BTE = scores_BTE / jnp.sum(scores_BTE, axis=-1, keepdims=True)
        else:
            shares_BTE = scores_BTE
        routes = Routes(
            jnp.where(real_BT1, chosen_BTK, logits_BTE.shape[-1]),
            jnp.where(real_BT1, weights_BTK, 0),
            logits_BTE,
            shares_BTE,
        )
        if not self.config.choice_bias_rate:
            return routes
        weights_BTK = observe(routes.weights_BTK, self.choice_bias[...], routes.counts_E)
        return routes._replace(weights_BTK=weights_BTK)

    def _choose(self, logits_BTE: jax.Array, scores_BTE: jax.Array) -> jax.Array:
        config = self.config
        # Logits order as their softmax does, and do not underflow.
        by_BTE = logits_BTE if config.scores == "softmax_chosen" else scores_BTE
        by_BTE = jax.lax.stop_gradient(by_BTE)
        if self.choice_bias is not None:
            bias_E = jax.lax.stop_gradient(self.choice_bias[...])
            by_BTE += along_last(bias_E, by_BTE).astype(by_BTE.dtype)
        if config.groups > 1:
            by_BTE = self._within_top_groups(by_BTE)
        return jax.lax.top_k(by_BTE, self.top_k)[1]

    def _within_top_groups(self, by_BTE: jax.Array) -> jax.Array:
        """Minus infinity for experts outside the token's best groups (here N groups of C)."""
        config = self.config
        by_BTNC = by_BTE.reshape(*by_BTE.shape[:2], config.groups, -1)
        if config.group_score == "max":
            best_BTN = jnp.max(by_BTNC, axis=-1)
        else:
            best_BTN = jnp.sum(jax.lax.top_k(by_BTNC, 2)[0], axis=-1)
        chosen_BTK = jax.lax.top_k(best_BTN, config.top_groups)[1]
        kept_BTN = jnp.any(jax.nn.one_hot(chosen_BTK, config.groups, dtype=bool), axis=-2)
        return jnp.where(kept_BTN[..., None], by_BTNC, -jnp.inf).reshape(by_BTE.shape)

    def _weigh(
        self, logits_BTE: jax.Array, scores_BTE: jax.Array, chosen_BTK: jax.Array
    ) -> jax.Array:
        config = self.config
        if config.scores == "softmax_chosen":
            weights_BTK = jax.nn.softmax(_take(logits_BTE, chosen_BTK), axis=-1)
        else:
            weights_BTK = _take(scores_BTE, chosen_BTK)
        if config.normalize:
            total_BT1 = jnp.sum(weights_BTK, axis=-1, keepdims=True)
            weights_BTK = weights_BTK / (total_BT1 + config.normalize_eps)
        if config.scale != 1:
            weights_BTK = weights_BTK * config.scale
        if self.expert_scale is None:
            return weights_BTK
        scale_E = along_last(self.expert_scale[...].astype(weights_BTK.dtype), scores_BTE)
        return weights_BTK * _take(jnp.broadcast_to(scale_E, scores_BTE.shape), chosen_BTK)


def _softmax(logits_BTE: jax.Array) -> jax.Array:
    return jax.nn.softmax(logits_BTE, axis=-1)


_SCORES = {"softmax": _softmax, "softmax_chosen": _softmax, "sigmoid": jax.nn.sigmoid}


def _take(values_BTE: jax.Array, chosen_BTK: jax.Array) -> jax.Array:
    """The values of the chosen experts. A sum over one-hot rows, whose gradient is no scatter."""
    chosen_BTKE = jax.nn.one_hot(chosen_BTK, values_BTE.shape[-1], dtype=bool)
    return jnp.sum(jnp.where(chosen_BTKE, values_BTE[..., None, :], 0), axis=-1)
