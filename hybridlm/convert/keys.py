"""The keys of a `config.json` of transformers, each of which must be read, known harmless or refused."""

from collections.abc import Mapping
from typing import Any

from hybridlm.errors import ConvertError

#: Keys without influence on logits: how a model was trained or is sampled from, and how the code of
#: transformers runs it. Dropout is among them: transformers applies it in training only.
HARMLESS = frozenset(
    """
    architectures model_type transformers_version torch_dtype dtype _name_or_path name_or_path
    auto_map use_cache bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id
    decoder_start_token_id initializer_range attention_dropout hidden_dropout embd_pdrop
    resid_pdrop attn_pdrop dropout residual_dropout embedding_dropout max_position_embeddings
    pretraining_tp attn_implementation _attn_implementation_autoset _attn_implementation
    _attn_implementation_internal gradient_checkpointing output_attentions output_hidden_states
    output_router_logits return_dict return_dict_in_generate torchscript use_bfloat16 pruned_heads
    is_encoder_decoder add_cross_attention tie_encoder_decoder cross_attention_hidden_size
    chunk_size_feed_forward problem_type id2label label2id num_labels finetuning_task task_specific_params
    tokenizer_class prefix max_length min_length do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    output_scores forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens tf_legacy_loss
    cache_implementation unsloth_version unsloth_fixed transformers.js_config z_loss_coefficient
    """.split()
)

_REQUIRED = object()
_TYPES = {
    "a whole number": int,
    "a number": (int, float),
    "true or false": bool,
    "a text": str,
    "a list": list,
    "an object": dict,
}


class Keys:
    """The keys of a config, or of an object in one, with a note of which were read.

    A key that is absent or null has the default that is given for it, which must be that of the class
    in transformers. Without a default it must be there. With `nullable` null means None.
    """

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = ""):
        """Reads from `values`; errors name `where`, the file, and the key with `prefix`."""
        self.values, self.where, self.prefix = dict(values), where, prefix
        self._unread = set(values)

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def integer(self, name: str, default: Any = _REQUIRED, *, nullable: bool = False) -> Any:
        return self._read(name, default, "a whole number", nullable)

    def number(self, name: str, default: Any = _REQUIRED, *, nullable: bool = False) -> Any:
        return self._read(name, default, "a number", nullable)

    def flag(self, name: str, default: Any = _REQUIRED, *, nullable: bool = False) -> Any:
        return self._read(name, default, "true or false", nullable)

    def truth(self, name: str, default: bool) -> bool:
        """A flag that configs also give as a number, of which 0 alone is false."""
        if isinstance(self.values.get(name), int):
            self._unread.discard(name)
            return bool(self.values[name])
        return self.flag(name, default)

    def text(self, name: str, default: Any = _REQUIRED, *, nullable: bool = False) -> Any:
        return self._read(name, default, "a text", nullable)

    def list(self, name: str, length: int | None = None, default: Any = _REQUIRED) -> Any:
        """A list; `length` is how many entries it must have, such as one a layer."""
        found = self._read(name, default, "a list")
        if isinstance(found, list) and length is not None and len(found) != length:
            self.refuse(name, f"has {len(found)} entries, and the model has {length} layers")
        return found

    def object(self, name: str, default: Any = _REQUIRED) -> "Keys | Any":
        """The keys of a nested object; its own `finish` is to be called."""
        found = self._read(name, default, "an object")
        if not isinstance(found, dict):
            return found
        return Keys(found, self.where, f"{self.prefix}{name}.")

    def choice[T](self, name: str, meanings: Mapping[str, T], default: Any = _REQUIRED) -> T:
        """The meaning of a text.

        Raises:
          ConvertError: for a text without one, which it lists.
        """
        found = self.text(name, default)
        if found not in meanings:
            self.refuse(name, f"is {found!r}: hybridlm has {', '.join(map(str, meanings))}")
        return meanings[found]

    def only(self, name: str, *allowed: Any, why: str = "") -> None:
        """Refuses a key whose value is not one of `allowed`; the first is that of an absent key."""
        value = self.values.get(name, allowed[0])
        self._unread.discard(name)
        if value not in allowed and not (value is None and not allowed[0]):  # null: left out
            because = why or f"hybridlm has only {' or '.join(map(_json, allowed))}"
            self.refuse(name, f"is {_json(value)}: {because}")

    def harmless(self, *names: str) -> None:
        """Notes keys without influence on logits in this family."""
        self._unread -= set(names)

    def finish(self) -> None:
        """Raises a ConvertError if there are keys that were not read and are not `HARMLESS`."""
        left = sorted(self._unread - HARMLESS)
        if left:
            listed = ", ".join(f"{self.prefix}{n} = {_json(self.values[n])}" for n in left[:4])
            more = f" and {len(left) - 4} more" if left[4:] else ""
            raise ConvertError(
                f"{self.where}: hybridlm does not know what these options change: {listed}{more}"
            )

    def refuse(self, name: str, problem: str) -> None:
        """Raises the ConvertError for a key."""
        raise ConvertError(f"{self.where}: {self.prefix}{name} {problem}")

    def _read(self, name: str, default: Any, what: str, nullable: bool = False) -> Any:
        self._unread.discard(name)
        value = self.values.get(name)
        if value is None and nullable and name in self.values:
            return None
        if value is None:
            if default is _REQUIRED:
                self.refuse(name, "is missing")
            return default
        right = isinstance(value, _TYPES[what]) and (what == "true or false") == isinstance(
            value, bool
        )
        if what == "a whole number" and isinstance(value, float) and value.is_integer():
            return int(value)
        if not right:
            self.refuse(name, f"must be {what}, not {_json(value)}")
        return value


def _json(value: Any) -> str:
    text = {None: "null", True: "true", False: "false"}.get(value) if _plain(value) else None
    text = repr(value) if text is None else text
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)
