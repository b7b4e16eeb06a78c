"""Token stores: what every source gives once it is opened, and how it is asked."""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from hybridlm.data.loss_mask import LossMask
from hybridlm.data.tokenizers import Tokenizer
from hybridlm.storage.local_copies import download_folder, is_uploaded, upload_folder
from hybridlm.storage.writing import make_folder

SPLITS = ("train", "heldout")


class Split(Protocol):
    """The documents of one split as one stream of tokens, read by index.

    Attributes:
      documents, tokens: counts; `tokens` includes the special tokens of documents.
      bytes: UTF-8 bytes of the documents' text.
      token_bytes: UTF-8 bytes of the documents' tokens (`Tokenizer.token_bytes`).
      unknown_tokens: tokens that stand for text which the tokenizer cannot encode.

    A split of which only some tokens count as targets has a `loss_mask` too (`loss_mask_of`).
    """

    documents: int
    tokens: int
    bytes: int
    token_bytes: int
    unknown_tokens: int

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `start` to `stop` of the split.

        Returns:
          tokens: int32 (stop - start,).
          begins: bool (stop - start,), True where a document begins.
        """

    def document_offsets(self) -> np.ndarray:
        """The token at which each document begins, then `tokens`: int64 (documents + 1,)."""


def loss_mask_of(split: Split) -> LossMask | None:
    """Which tokens of a split count as targets; None where all do."""
    return getattr(split, "loss_mask", None)


class TokenStore(Protocol):
    """An opened source: its documents in two splits.

    Attributes:
      folder: where its tokens are, for messages and records.
      sha256: changes with every token and with the tokenizer; a resumed run compares it.
      heldout_fraction: share of documents held out; None where they come from files of their own.
    """

    @property
    def folder(self) -> Path: ...

    @property
    def sha256(self) -> str: ...

    @property
    def heldout_fraction(self) -> float | None: ...

    @property
    def train(self) -> Split: ...

    @property
    def heldout(self) -> Split: ...


class Opening(NamedTuple):
    """What a source is opened with.

    Attributes:
      name: the source's name in the config.
      tokenizer: the tokenizer of all sources.
      cache: folder for tokens and indices that opening writes.
      heldout_fraction: share of documents held out for evaluation.
      verify: "checksum" or "size", see `DataConfig`.
      shared: the folder of a bucket that `cache` is a copy of; None if it is no copy.
      asked: gets every folder of `cache` that is asked for.
    """

    name: str
    tokenizer: Tokenizer
    cache: Path
    heldout_fraction: float
    verify: str = "checksum"
    shared: str | None = None
    asked: list[Path] | None = None

    def folder(self, digest: str) -> Path:
        """The folder of `cache` for tokens of this source with this digest, in hexadecimal.

        It is downloaded if another process has shared it in a bucket.
        """
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in self.name)
        folder = self.cache / f"{safe}-{digest[:12]}"
        if self.shared is not None and not folder.exists():
            make_folder(folder.parent)
            download_folder(f"{self.shared}/{folder.name}", folder)
        if self.asked is not None:
            self.asked.append(folder)
        return folder

    def share(self) -> None:
        """Uploads the folders that were asked for and are not in the bucket yet."""
        for folder in self.asked if self.shared is not None and self.asked else ():
            url = f"{self.shared}/{folder.name}"
            if folder.exists() and not is_uploaded(url):
                upload_folder(folder, url)
