"""The registry of kinds of sources: the values that `kind` may have in a config.

A new kind is a file with a settings class here, and a line in `KINDS`. A kind of text derives from
`TextSource` and gives `read_file`, a store of token ids from `TokenSource` and gives `read_store`;
any other derives from `SourceConfig` and gives `open`.
"""

from typing import Any

from hybridlm.data.source import SourceConfig
from hybridlm.data.sources.arrayrecord import ArrayRecords
from hybridlm.data.sources.arrow import ArrowTable
from hybridlm.data.sources.chat import Chat
from hybridlm.data.sources.flat import FlatTokens
from hybridlm.data.sources.jsonl import JsonLines
from hybridlm.data.sources.megatron import MegatronTokens
from hybridlm.data.sources.parquet import ParquetFiles
from hybridlm.data.sources.prompts import Prompts
from hybridlm.data.sources.text import TextFiles
from hybridlm.data.sources.text_source import TextSource
from hybridlm.data.sources.token_shards import TokenShards
from hybridlm.data.sources.token_source import TokenSource
from hybridlm.errors import UserError
from hybridlm.settings.kinds import read_kind
from hybridlm.settings.names import nearest
from hybridlm.settings.text import read_options

KINDS: dict[str, type[SourceConfig]] = {
    c.kind_name: c
    for c in (
        TextFiles,
        JsonLines,
        ParquetFiles,
        ArrayRecords,
        ArrowTable,
        Prompts,
        Chat,
        TokenShards,
        FlatTokens,
        MegatronTokens,
    )
}

__all__ = [
    "KINDS",
    "ArrayRecords",
    "ArrowTable",
    "Chat",
    "FlatTokens",
    "JsonLines",
    "MegatronTokens",
    "ParquetFiles",
    "Prompts",
    "SourceConfig",
    "TextFiles",
    "TextSource",
    "TokenShards",
    "TokenSource",
    "read_source",
    "text_source",
]

_WITHOUT_KEY = (TextFiles, ArrayRecords, TokenShards)


def read_source(value: Any, path: str) -> SourceConfig:
    """Reads the settings of one source; `kind` selects their dataclass.

    Raises:
      ConfigError: if the kind is missing or unknown, or a setting is invalid.
    """

    def drop_unused(cls: type[SourceConfig], settings: dict[str, Any]) -> None:
        if cls in _WITHOUT_KEY:  # older versions wrote the text_key of every kind
            settings.pop("text_key", None)

    return read_kind(value, path, KINDS, "source", prepare=drop_unused)


def text_source(kind: str, path: str, text_key: str | None = None) -> TextSource:
    """A source of text, as commands name it.

    Args:
      text_key: the field or column of the text; None takes the kind's own default.

    Raises:
      UserError: if there is no such kind, or it yields no text or has no fields.
    """
    text_kinds = {k: c for k, c in KINDS.items() if issubclass(c, TextSource)}
    if kind in KINDS and kind not in text_kinds:
        raise UserError(
            f"--kind {kind} holds tokens, not text: name it in a config, as data.sources.NAME ="
            f" dict(kind={kind!r}, path={path!r})"
        )
    if kind not in text_kinds:
        raise UserError(f"--kind is {kind!r}: {nearest(kind, text_kinds)}")
    cls = text_kinds[kind]
    values = {"path": path} | ({} if text_key is None else {"text_key": text_key})
    if text_key is not None and "text_key" not in cls.__dataclass_fields__:
        keyed = [k for k, c in text_kinds.items() if "text_key" in c.__dataclass_fields__]
        raise UserError(f"--text_key goes with --kind {' or '.join(keyed)}, not {kind}")
    return read_options(cls, values, {"path": "source"})
