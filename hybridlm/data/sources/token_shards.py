"""Sources of kind "tokens": folders of token shards."""

from hybridlm.data.shards import open_shards
from hybridlm.data.source import SourceConfig
from hybridlm.data.store import Opening, TokenStore
from hybridlm.settings.bounds import settings


@settings
class TokenShards(SourceConfig):
    """A folder written by `hybridlm tokenize`. It keeps the split of its manifest and ignores
    `data.heldout_fraction`.
    """

    kind_name = "tokens"

    def open(self, opening: Opening) -> TokenStore:
        return open_shards(self.path, tokenizer=opening.tokenizer, verify=opening.verify)
