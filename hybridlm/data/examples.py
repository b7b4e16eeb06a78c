"""What is learned from a source: whole documents, completions of prompts, or a chat's answers.

Each knows how it becomes tokens, so that one process reads the source and others encode it. An `id`
is the file's path relative to the source's root, with ":line" or ":row".
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

from hybridlm.data.chat_template import Piece, plain_pieces, template_pieces
from hybridlm.data.tokenizers import Tokenizer
from hybridlm.errors import DataError


class Encoded(NamedTuple):
    """The tokens of a document, without the BOS and EOS that shards put around it.

    Attributes:
      ids: int32 (tokens,).
      counts: bool (tokens + 1,), whether each token, and then EOS, counts as a target; None where
        all do.
    """

    ids: np.ndarray
    counts: np.ndarray | None = None


class Example(Protocol):
    """A document of a source; it can be sent to another process."""

    @property
    def id(self) -> str: ...

    @property
    def text(self) -> str:
        """Its text, whose copies are all in one split."""

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        """Its tokens.

        Raises:
          DataError: if the tokenizer or a template refuses it; the message does not name it.
        """


class Document(NamedTuple):
    """One text, of which every token counts as a target."""

    id: str
    text: str

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        return Encoded(tokenizer.encode(self.text))


class Completion(NamedTuple):
    """A prompt and its completion; the completion and the EOS after it count as targets.

    Each is encoded on its own, as a prompt is when text is generated.
    """

    id: str
    prompt: str
    completion: str

    @property
    def text(self) -> str:
        return self.prompt + self.completion

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        return encode_pieces([Piece(self.prompt, False), Piece(self.completion, True)], tokenizer)


class Conversation(NamedTuple):
    """Messages of a chat; what the assistant says counts as targets, with the token that ends it.

    Attributes:
      messages: dicts with "role" and "content" (text), and whatever else the template reads.
      template: a Jinja template, in place of the tokenizer's; None takes that, or the plain form
        (`plain_pieces`) where it has none.
    """

    id: str
    messages: tuple[dict[str, Any], ...]
    template: str | None = None

    @property
    def text(self) -> str:
        return "\n".join(message["content"] for message in self.messages)

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        template = self.template if self.template is not None else tokenizer.chat_template
        if template is None:
            return encode_pieces(plain_pieces(self.messages, tokenizer), tokenizer)
        return encode_pieces(template_pieces(self.messages, tokenizer, template), tokenizer)


def encode_pieces(pieces: list[Piece], tokenizer: Tokenizer) -> Encoded:
    """Encodes pieces one by one.

    BOS at the beginning and EOS at the end are left out, as shards put them there. EOS counts if
    the last piece does.
    """
    if pieces and pieces[0].token == tokenizer.bos_id:
        pieces = pieces[1:]
    end = bool(pieces) and pieces[-1].answer
    if pieces and pieces[-1].token == tokenizer.eos_id:
        pieces = pieces[:-1]
    ids = [
        tokenizer.encode(piece.text) if piece.token is None else np.array([piece.token], np.int32)
        for piece in pieces
    ]
    counts = [np.full(len(part), piece.answer) for part, piece in zip(ids, pieces)]
    encoded = Encoded(
        np.concatenate([np.zeros(0, np.int32), *ids]), np.concatenate([*counts, [end]]).astype(bool)
    )
    if not encoded.counts.any():
        raise DataError("no token counts as a target: there is no answer")
    return encoded
