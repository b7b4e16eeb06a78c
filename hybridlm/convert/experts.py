"""Mixtures of experts as transformers writes them: a tensor for each expert's matrix, or for all."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hybridlm.convert import parts
from hybridlm.convert.family import Inexpressible, only_value
from hybridlm.convert.keys import Keys
from hybridlm.convert.parts import Gated
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.convert.transforms import TRANSPOSED, Columns, Stacked, chain
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.settings import ModelConfig

#: The matrices of a gated feed-forward, ours and theirs.
GATED = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}
#: Settings that weigh losses or move biases in training, and change no output.
TRAINING = frozenset({"balance_weight", "z_weight", "choice_bias_rate"})


def expert_rules(
    config: MoEConfig,
    theirs: str = "mlp",
    *,
    matrices: dict[str, str] = GATED,
    router: str = "gate",
    shared: str = "shared_expert",
    choice_bias: str = "gate.e_score_correction_bias",
) -> list[Rule]:
    """The rules of a router, gated experts and a shared expert, with a tensor for each matrix.

    Args:
      theirs: the name of the feed-forward.
      matrices: the names of an expert's matrices.
      router: the name of the router.
      shared: the name of the shared expert; its gate is called "<shared>_gate".
      choice_bias: the name of the bias of the choice.
    """
    found = [rule(f"{theirs}.{router}.weight", "mlp.router.kernel", TRANSPOSED)]
    if config.router.choice_bias:
        found.append(rule(f"{theirs}.{choice_bias}", "mlp.router.choice_bias"))
    for ours, name in matrices.items():
        names = [f"{theirs}.experts.{i}.{name}.weight" for i in range(config.experts)]
        found.append(rule(names, f"mlp.experts.{ours}", chain(Stacked(), TRANSPOSED)))
    if config.shared_hidden is not None:
        for ours, name in GATED.items():
            found += linear(f"{theirs}.{shared}.{name}", f"mlp.shared.{ours}")
    if config.shared_gate:
        found += linear(f"{theirs}.{shared}_gate", "mlp.shared_gate")
    return found


def packed_rules(config: MoEConfig, theirs: str, *, in_turn: bool) -> list[Rule]:
    """The rules of a router and gated experts whose matrices are (in, out), each of all experts.

    Args:
      theirs: the name of the feed-forward.
      in_turn: whether gate and up alternate in their tensor, or stand one after the other.
    """
    both = Columns(2, in_turn)
    found = [
        rule(f"{theirs}.router.weight", "mlp.router.kernel", TRANSPOSED),
        rule(f"{theirs}.experts.gate_up_proj", ("mlp.experts.gate", "mlp.experts.up"), both),
        rule(f"{theirs}.experts.down_proj", "mlp.experts.down"),
    ]
    if config.router.bias:
        found.append(rule(f"{theirs}.router.bias", "mlp.router.bias"))
    if config.bias:
        into = [f"mlp.experts.{name}_bias" for name in ("gate", "up")]
        found.append(rule(f"{theirs}.experts.gate_up_proj_bias", into, both))
        found.append(rule(f"{theirs}.experts.down_proj_bias", "mlp.experts.down_bias"))
    return found


def mixture_settings(
    keys: Keys,
    router: Mapping[str, Any],
    *,
    experts: int,
    top_k: int,
    hidden: str,
    size: int,
    counts: Sequence[str] = ("num_experts", "num_local_experts"),
) -> dict[str, Any]:
    """The settings of gated experts without a shared one.

    Args:
      router: its settings.
      experts, top_k, size: the class's numbers of experts and of those of a token, and their size.
      hidden: the key of that size.
      counts: keys of the number of experts; the first that is there counts.
    """
    keys.harmless("router_aux_loss_coef", "router_jitter_noise")
    number = experts
    for name in reversed(counts):
        number = keys.integer(name, number)
    return {
        "kind": "moe",
        "experts": number,
        "top_k": keys.integer("num_experts_per_tok", top_k),
        "hidden": keys.integer(hidden, size),
        "activation": keys.choice("hidden_act", parts.ACTIVATIONS, "silu"),
        "router": dict(router),
    }


def mixture_keys(mixture: MoEConfig, hidden: str, count: str = "num_experts") -> dict[str, Any]:
    """The inverse of `mixture_settings`, without the router's settings."""
    return {
        count: mixture.experts,
        "num_experts_per_tok": mixture.top_k,
        hidden: mixture.hidden,
        "hidden_act": parts.THEIR_ACTIVATIONS[mixture.activation],
    }


def by_layer(
    keys: Keys,
    sparse: Sequence[bool],
    mixture: dict[str, Any],
    hidden: str = "intermediate_size",
) -> list[tuple[str, dict[str, Any]]]:
    """The name and settings of each layer's feed-forward: the mixture if `sparse`, or a gated one.

    Args:
      hidden: the key of the size of the gated ones.
    """
    if all(sparse):
        keys.harmless(hidden)
        return [("moe", mixture)] * len(sparse)
    gated = parts.gated(keys, hidden)
    return [("moe", mixture) if has else ("mlp", gated) for has in sparse]


def alternating(keys: Keys, experts: int) -> list[bool]:
    """Of each layer, whether it has experts: `mlp_only_layers` and `decoder_sparse_step`."""
    dense, step = keys.list("mlp_only_layers", default=[]), keys.integer("decoder_sparse_step", 1)
    if step < 1:
        keys.refuse("decoder_sparse_step", f"must be at least 1, not {step}")
    depth = keys.integer("num_hidden_layers")
    return [experts > 0 and i not in dense and (i + 1) % step == 0 for i in range(depth)]


class Feedforwards(NamedTuple):
    """The feed-forwards of a model whose layers have one mixture of experts, or a gated one.

    Attributes:
      sparse: of each layer, whether it has the mixture.
      mixture, dense: None if no layer has one.
    """

    sparse: list[bool]
    mixture: MoEConfig | None
    dense: Gated | None

    @classmethod
    def of(cls, model: ModelConfig) -> "Feedforwards":
        """Those of a model.

        Raises:
          Inexpressible: if two mixtures differ, or a layer has another feed-forward.
        """
        mixtures, dense = mixtures_and_dense(model)
        found = [x for x in mixtures if x is not None]
        mixture = only_value(found, "the mixture of experts") if found else None
        return cls([x is not None for x in mixtures], mixture, first_of(dense))

    @property
    def dense_below(self) -> int:
        """The number of layers below the first with experts."""
        return self.sparse.index(True) if any(self.sparse) else len(self.sparse)

    def dense_keys(self, hidden: str = "intermediate_size") -> dict[str, Any]:
        """The keys of the gated feed-forwards; none if no layer has one."""
        if self.dense is None:
            return {}
        activation = parts.THEIR_ACTIVATIONS[self.dense.activation]
        return {hidden: self.dense.hidden, "hidden_act": activation}


def required_mixture(model: ModelConfig) -> MoEConfig:
    """The mixture of experts that all layers have.

    Raises:
      Inexpressible: if a layer has none, or another.
    """
    mixtures, _ = mixtures_and_dense(model)
    for i, mixture in enumerate(mixtures):
        if mixture is None:
            raise Inexpressible(f"layer {i} has no mixture of experts")
    return only_value([x for x in mixtures if x is not None], "the mixture of experts")


def mixtures_and_dense(model: ModelConfig) -> tuple[list[MoEConfig | None], list[Gated | None]]:
    """The mixture of experts of each layer, and the gated feed-forward of each layer that has none.

    Raises:
      Inexpressible: if a layer has another feed-forward.
    """
    layers = model.layer_feedforwards()
    for i, layer in enumerate(layers):
        if not isinstance(layer, MoEConfig | Gated):
            raise Inexpressible(f"layer {i} has the feed-forward {layer.kind_name}, not gated")
    return (
        [x if isinstance(x, MoEConfig) else None for x in layers],
        [None if isinstance(x, MoEConfig) else x for x in layers],
    )


def first_of[T](layers: Sequence[T | None]) -> T | None:
    """The first that is not None."""
    return next((x for x in layers if x is not None), None)
