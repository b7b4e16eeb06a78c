"""The base of sources that hold token ids which another program wrote."""

import abc
from typing import Annotated, Any

from hybridlm.data.document_index import Documents, Specials, open_indexed
from hybridlm.data.source import SourceConfig
from hybridlm.data.store import Opening, TokenStore
from hybridlm.errors import DataError
from hybridlm.settings.bounds import IsPath, NotEmpty, settings


@settings
class TokenSource(SourceConfig):
    """A store of token ids: a format gives `read_store`, and this class the rest.

    The tokens are read where they are. An index of the documents is written into the token cache
    (`hybridlm.data.document_index`).

    Attributes:
      heldout_path: the documents held out for evaluation, as `path` names the others; None holds
        out `data.heldout_fraction` of the documents, by a hash of their tokens.
      add_bos: put the tokenizer's BOS before every document.
      add_eos: put the tokenizer's EOS after every document.
    """

    heldout_path: Annotated[str, NotEmpty(), IsPath()] | None = None
    add_bos: bool = False
    add_eos: bool = False

    @abc.abstractmethod
    def read_store(self, path: str, opening: Opening) -> Documents:
        """The documents of the files that `path` names."""

    def format_settings(self) -> dict[str, Any]:
        """The settings that the ends of documents depend on, ready for JSON."""
        return {"kind": self.kind_name}

    def open(self, opening: Opening) -> TokenStore:
        """The documents with their index: see `open_indexed`."""
        try:
            documents = self.read_store(self.path, opening)
            heldout = self.heldout_path and self.read_store(self.heldout_path, opening)
            _check_apart(documents, heldout or None)
            specials = Specials(self.add_bos, self.add_eos)
            return open_indexed(
                opening, documents, heldout or None, specials, self.format_settings()
            )
        except OSError as error:
            name = error.filename or self.path
            raise DataError(f"{name}: cannot be read ({error.strerror or error})") from None


def _check_apart(documents: Documents, heldout: Documents | None) -> None:
    known = {file.path.resolve() for file in documents.files}
    for file in heldout.files if heldout else ():
        if file.path.resolve() in known:
            raise DataError(f"{file.path}: is in path and in heldout_path; take it out of one")
