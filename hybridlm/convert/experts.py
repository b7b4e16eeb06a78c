"""Mixtures of experts as transformers writes them: each matrix of an expert is a tensor of its own."""

from collections.abc import Sequence

from hybridlm.convert.family import Inexpressible
from hybridlm.convert.parts import Gated
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.convert.transforms import TRANSPOSED, Stacked, chain
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
    """The rules of a router, gated experts and a shared expert.

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
