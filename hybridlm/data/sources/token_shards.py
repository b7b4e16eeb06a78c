"""Sources of kind "tokens": folders of token shards."""

from pathlib import Path

from hybridlm.data.files import SourceFile
from hybridlm.data.shards import (
    MANIFEST,
    checked_manifest,
    open_shards,
    read_manifest,
    shard_names,
)
from hybridlm.data.source import SourceConfig
from hybridlm.data.store import Opening, TokenStore
from hybridlm.errors import DataError
from hybridlm.settings.bounds import settings
from hybridlm.storage import is_remote, objects


@settings
class TokenShards(SourceConfig):
    """A folder written by `hybridlm tokenize`. It keeps the split of its manifest and ignores
    `data.heldout_fraction`.
    """

    kind_name = "tokens"

    def files(self, path: str) -> list[SourceFile]:
        folder = Path(path).expanduser()
        names = shard_names(read_manifest(folder))
        for name in names:
            if not (folder / name).is_file():
                raise DataError(f"{folder / name}: the shard is missing; copy the folder again")
        return [SourceFile(name, folder / name) for name in (MANIFEST, *names)]

    def find(self, path: str) -> list[str]:
        names = super().find(path)
        if not is_remote(path):
            return names
        folder = path.rstrip("/")
        content = objects.read(f"{folder}/{MANIFEST}") if MANIFEST in names else None
        if content is None:
            raise DataError(f"source {path}: {MANIFEST} is missing; run `hybridlm tokenize` again")
        wanted = shard_names(checked_manifest(content, f"{folder}/{MANIFEST}"))
        if missing := set(wanted).difference(names):
            raise DataError(f"{folder}/{min(missing)}: the shard is missing; copy the folder again")
        return names

    def open(self, opening: Opening) -> TokenStore:
        return open_shards(self.path, tokenizer=opening.tokenizer, verify=opening.verify)
