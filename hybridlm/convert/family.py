"""What a family of architectures defines, and how the options of transformers are read and written.

A family is a file in `hybridlm/convert/families` and a line in `hybridlm/convert/registry.py`. It
gives a model's settings from a `config.json`, a `config.json` from a model's settings, and the table
of tensors, which works in both directions.
"""

import abc
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from hybridlm.convert.keys import Keys
from hybridlm.convert.table import Rule, rule, under
from hybridlm.convert.transforms import TRANSPOSED
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.settings import ModelConfig


class Inexpressible(Exception):
    """A model that a class of transformers cannot hold; the message says which layer or setting."""


class Family(abc.ABC):
    """One class of transformers.

    Attributes:
      architecture: the class, as `architectures` in a config.json names it; exported under it.
      model_type: of its config.json.
      wrapper: the `model_type` of the model that sees or hears, for a text model that has no class of
        its own: its keys are written in a `text_config`. None for a class of its own.
      models: the models that are of this class, for documentation.
      also: other classes whose checkpoints are read as this one's.
      ignored: settings without influence on outputs, which an export may lose: they choose initial
        values, or weigh losses.
      stem: what the names of the tensors below the head begin with.
      embedding, final_norm: the names of these below `stem`.
      optional: tensors that a checkpoint may have besides, and that hold nothing of the model.
      aliases: (pattern, replacement) of other names that checkpoints have for tensors of the table.
    """

    architecture: ClassVar[str]
    model_type: ClassVar[str]
    wrapper: ClassVar[str | None] = None
    models: ClassVar[str]
    also: ClassVar[tuple[str, ...]] = ()
    ignored: ClassVar[frozenset[str]] = frozenset({"init_std", "z_loss"})
    stem: ClassVar[str] = "model."
    embedding: ClassVar[str] = "embed_tokens"
    final_norm: ClassVar[str] = "norm"
    optional: ClassVar[tuple[str, ...]] = ("*.rotary_emb.inv_freq",)
    aliases: ClassVar[tuple[tuple[str, str], ...]] = ()

    @abc.abstractmethod
    def settings(self, keys: Keys) -> dict[str, Any]:
        """The settings of `ModelConfig` as plain data.

        Args:
          keys: of the config.json; a key that this does not read is refused afterwards, unless it is
            known to be harmless.

        Raises:
          ConvertError: for an option that the model here does not have.
        """

    @abc.abstractmethod
    def config(self, model: ModelConfig) -> dict[str, Any]:
        """The keys of a config.json whose `settings` are those of the model.

        It may take every layer to be like the first of its kind: the result is read back with
        `settings` and compared layer by layer, so what does not fit is found there.

        Raises:
          Inexpressible: where the class has no key for a setting.
        """

    @abc.abstractmethod
    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        """The rules of one layer; names begin below the layer ("self_attn.q_proj.weight")."""

    def unused(self, model: ModelConfig) -> tuple[str, ...]:
        """Patterns of tensors that a checkpoint of this model may have besides: `optional`, and more."""
        return self.optional

    def outer(self, model: ModelConfig) -> list[Rule]:
        """The rules of the embedding, the final norm and the head."""
        rules = [
            rule(f"{self.stem}{self.embedding}.weight", "embedding"),
            *norm(model, f"{self.stem}{self.final_norm}", "final_norm"),
        ]
        if not model.tie_embeddings:
            rules.append(rule("lm_head.weight", "head.kernel", TRANSPOSED))
        return rules

    def rules(self, model: ModelConfig) -> list[Rule]:
        """The tensor table of a model; see `hybridlm.convert.table`."""
        found = self.outer(model)
        for i, layer in enumerate(model.layout.layers):
            halves = model.mixer_of(layer), model.feedforward_of(layer)
            found += under(self.layer(model, i, *halves), f"{self.stem}layers.{i}.", f"layers.{i}.")
        return found


def norm(model: ModelConfig, theirs: str, ours: str) -> list[Rule]:
    """The rules of a norm of the residual stream."""
    bias = [rule(f"{theirs}.bias", f"{ours}.bias")] if model.norm == "layernorm" else []
    return [rule(f"{theirs}.weight", f"{ours}.scale"), *bias]


def mixers_of[T: MixerConfig](model: ModelConfig, kind: type[T]) -> list[T]:
    """The mixer of each layer.

    Raises:
      Inexpressible: if one is of another kind.
    """
    found = [mixer for _, mixer in model.layer_mixers()]
    for i, mixer in enumerate(found):
        if not isinstance(mixer, kind):
            raise Inexpressible(f"layer {i} is {mixer.mechanism}, not {kind.kind_name}")
    return found


def require_block(model: ModelConfig, block: str) -> None:
    """Raises Inexpressible unless the norms of all layers are where `block` says."""
    found = {model.block_of(layer).norms for layer in model.layout.layers}
    if found != {block}:
        raise Inexpressible(f"its layers are {' and '.join(sorted(found))}, not {block}")


def only_value(values: Iterable[Any], what: str) -> Any:
    """The value that all layers have.

    Raises:
      Inexpressible: if two differ.
    """
    found = list(values)
    for i, value in enumerate(found):
        if value != found[0]:
            raise Inexpressible(f"layer {i} has {what} {value}, and layer 0 has {found[0]}")
    return found[0]


def not_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are not None."""
    return {k: v for k, v in values.items() if v is not None}
