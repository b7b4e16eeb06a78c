"""Tokenizers (bytes, Hugging Face `tokenizer.json`, SentencePiece), and training of a BPE."""

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal, Protocol

import numpy as np

from hybridlm.data import hf_text
from hybridlm.data.files import require_module
from hybridlm.data.gguf_tokenizer import gguf_tokenizer_files
from hybridlm.errors import DataError
from hybridlm.settings.bounds import IsPath, settings
from hybridlm.settings.json_text import parse_json
from hybridlm.settings.reader import require
from hybridlm.storage import expand
from hybridlm.storage.writing import make_folder, write_text

# A tokenizer.json does not say which special tokens begin and end a document. Without a
# tokenizer_config.json beside it, these names decide. (SentencePiece models name their own.)
_BOS_NAMES = (
    "<|bos|> <bos> <s> <|begin_of_text|> <|startoftext|> <|begin▁of▁sentence|> "
    "<｜begin▁of▁sentence｜> [BOS] [CLS]"
).split()
_EOS_NAMES = (
    "<|eos|> <eos> </s> <|end_of_text|> <|endoftext|> <|end▁of▁sentence|> "
    "<｜end▁of▁sentence｜> [EOS] [SEP]"
).split()

_MAX_VOCAB = 1 << 24  # the library allocates memory for all merges of a BPE in advance


@settings
class TokenizerConfig:
    """The tokenizer.

    Attributes:
      kind: "bytes" (ids 0 to 255 are the bytes of UTF-8), "hf" (a Hugging Face
        `tokenizer.json`), "sentencepiece" (a `.model` file) or "gguf" (the byte-level BPE in a
        GGUF file).
      path: the tokenizer's file; None for "bytes".
    """

    kind: Literal["bytes", "hf", "sentencepiece", "gguf"] = "bytes"
    path: Annotated[str, IsPath()] | None = None

    def __post_init__(self):
        if self.kind == "bytes":
            require(self.path is None, "path", "must be None for the byte tokenizer")
        else:
            require(bool(self.path), "path", f"must name the file of the {self.kind} tokenizer")


class Tokenizer(Protocol):
    """The interface of tokenizers.

    Attributes:
      kind, path: as in `TokenizerConfig`; another process can open the tokenizer from them.
      vocab_size: ids are in [0, vocab_size), BOS and EOS included.
      bos_id, eos_id: the ids that begin and end a document.
      unk_id: the id of text that cannot be encoded, or None if all text can be.
      special_tokens: the ids of the special tokens that have names, by name.
      named_tokens: the names of special tokens by role ("bos_token", ...), as templates use them.
      chat_template: the Jinja template of conversations, or None.
      fingerprint: SHA-256, in hexadecimal, of the kind, the file, bos_id and eos_id.
    """

    kind: str
    path: str | None
    vocab_size: int
    bos_id: int
    eos_id: int
    unk_id: int | None
    special_tokens: dict[str, int]
    named_tokens: dict[str, str]
    chat_template: str | None
    fingerprint: str

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int32 (tokens,); adds no special token and recognises none."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; drops special ids and replaces invalid byte sequences by U+FFFD."""

    def token_bytes(self) -> np.ndarray:
        """The number of UTF-8 bytes of each id, int32 (vocab_size,); 0 for special ids.

        For bytes and byte-level BPE they sum to a document's length in bytes. For a tokenizer that
        normalises text they may not; the shards' manifest records both sums.
        """

    def pieces(self) -> list[str]:
        """The name of each id in the tokenizer's file; "" for ids that the file does not name."""


def open_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Opens the tokenizer that `config` describes.

    Raises:
      DataError: if a file is missing or unreadable, or a library is missing.
    """
    return open_kind(config.kind, config.path)


def open_kind(kind: str, path: str | None) -> Tokenizer:
    """`open_tokenizer` for plain values, which can be sent to another process."""
    kinds = {
        "bytes": ByteTokenizer,
        "hf": HFTokenizer,
        "sentencepiece": SentencePieceTokenizer,
        "gguf": GGUFTokenizer,
    }
    if kind not in kinds:
        raise DataError(f"tokenizer kind {kind!r} is unknown; valid are: {', '.join(kinds)}")
    return ByteTokenizer() if kind == "bytes" else kinds[kind](path)


def _fingerprint(kind: str, content: bytes, bos_id: int, eos_id: int) -> str:
    return hashlib.sha256(f"{kind}\n{bos_id}\n{eos_id}\n".encode() + content).hexdigest()


def _read_file(path: str | None, part: str) -> bytes:
    try:
        return expand(path).read_bytes()
    except ValueError as error:  # a NUL in the path
        raise DataError(f"tokenizer {path!r}: {part} cannot be read ({error})") from None
    except OSError as error:
        raise DataError(f"tokenizer {path}: {part} cannot be read ({error.strerror})") from None


def _id_array(ids: Iterable[int], vocab_size: int) -> np.ndarray:
    ids = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64).reshape(-1)
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise DataError(
            f"token {ids.min() if ids.min() < 0 else ids.max()} is outside the tokenizer's "
            f"vocabulary of {vocab_size}"
        )
    return ids


class ByteTokenizer:
    """Ids 0..255 are the bytes of UTF-8; 256 is BOS and 257 is EOS."""

    kind, path = "bytes", None
    vocab_size, bos_id, eos_id, unk_id = 258, 256, 257, None
    chat_template = None

    def __init__(self):
        self.special_tokens, self.named_tokens = {}, {}
        self.fingerprint = _fingerprint("bytes", b"", self.bos_id, self.eos_id)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        ids = _id_array(ids, self.vocab_size)
        return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        return np.where(np.arange(self.vocab_size) < 256, 1, 0).astype(np.int32)

    def pieces(self) -> list[str]:
        return [*(f"<0x{byte:02X}>" for byte in range(256)), "", ""]


class HFTokenizer:
    """A Hugging Face `tokenizer.json`; needs only the `tokenizers` library.

    BOS and EOS are the tokens named by a `tokenizer_config.json` beside the file, else special
    tokens with well-known names, else new ids after the vocabulary.

    Tokens that either file calls special are never read out of text. Text that the tokenizer would
    lose is refused.
    """

    kind = "hf"

    def __init__(self, path: str):
        module = require_module("tokenizers", "hf", f"the tokenizer {path}")
        content, config, self.chat_template = self._read(path)
        try:
            self._tokenizer = module.Tokenizer.from_str(content.decode("utf-8"))
            self._json = parse_json(content)
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"tokenizer {path}: not a valid tokenizer.json ({error})") from None
        self.path = str(path)
        named, names = hf_text.named_roles(config), hf_text.special_names(config)
        added = self._tokenizer.get_added_tokens_decoder()
        special = {t.content: i for i, t in added.items() if t.special or t.content in names}
        self._special = set(special.values())
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        self._file_vocab = 1 + max(ids, default=-1)
        self.vocab_size = self._file_vocab
        self.bos_id = self._special_id("bos_token", named, special, _BOS_NAMES)
        self.eos_id = self._special_id("eos_token", named, special, _EOS_NAMES)
        model = self._json.get("model") or {}
        unk, self.unk_id = model.get("unk_token"), model.get("unk_id")
        if isinstance(unk, str):
            self.unk_id = self._tokenizer.token_to_id(unk)

        kept = {name: i for name, i in special.items() if i != self.unk_id}
        for role in ("bos_token", "eos_token"):
            if role in named:
                kept[named[role]] = self._tokenizer.token_to_id(named[role])
        promoted = sorted(t.content for t in added.values() if t.content in kept and not t.special)
        changed = hf_text.without_pieces(
            self._json, {name for name, i in kept.items() if i != self.unk_id}
        )
        self._encoder = self._tokenizer
        if changed:
            self._encoder = module.Tokenizer.from_str(json.dumps(changed, allow_nan=False))
        _read_plainly(module, self._encoder, promoted)
        self._never = np.array(sorted(kept.values()), np.int32)
        self.special_tokens = {**special, **kept}
        by_id = {index: name for name, index in self.special_tokens.items()}
        own = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        self.named_tokens = {role: by_id[i] for role, i in own.items() if i in by_id} | named
        self._detector = None
        if detecting := hf_text.with_unknown(changed or self._json):
            self._detector = (
                module.Tokenizer.from_str(json.dumps(detecting[0], allow_nan=False)),
                detecting[1],
            )
            _read_plainly(module, self._detector[0], promoted)
        # What is read in another way than by the file alone gets another fingerprint.
        how = (
            json.dumps([promoted, changed is not None], allow_nan=False).encode()
            if promoted or changed
            else b""
        )
        self.fingerprint = _fingerprint("hf", content + how, self.bos_id, self.eos_id)

    def _read(self, path: str) -> tuple[bytes, dict, str | None]:
        """(tokenizer.json, tokenizer_config.json, template of conversations)."""
        content = _read_file(path, "the file")
        folder = expand(path).parent
        config = _tokenizer_config(folder / "tokenizer_config.json")
        return content, config, _chat_template(folder, config)

    def _special_id(self, role: str, named: dict, special: dict[str, int], known: list[str]) -> int:
        if name := named.get(role):
            index = self._tokenizer.token_to_id(name)
            if index is None:
                raise DataError(
                    f"tokenizer {self.path}: tokenizer_config.json names {role} {name!r}, "
                    "which is not in its vocabulary"
                )
            self._special.add(index)
            return index
        for name in known:
            if name in special:
                return special[name]
        self.vocab_size += 1
        self._special.add(self.vocab_size - 1)
        return self.vocab_size - 1

    def encode(self, text: str) -> np.ndarray:
        try:
            # The "fast" variant omits character offsets, which take a fifth of the time.
            encoded = self._encoder.encode_batch_fast([text], add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise DataError(
                f"tokenizer {self.path}: cannot encode the text {text[:20]!r}... ({error})"
            ) from None
        if self._detector:
            self._refuse_lost_text(text)
        ids = np.asarray(encoded[0].ids, dtype=np.int32)
        if np.isin(ids, self._never).any():
            found = int(ids[np.isin(ids, self._never)][0])
            raise DataError(
                f"tokenizer {self.path}: reads ordinary text as its special token {found} "
                f"({self._tokenizer.id_to_token(found)!r}); take this text out"
            )
        return ids

    def _refuse_lost_text(self, text: str) -> None:
        detector, unknown = self._detector
        if unknown not in detector.encode_batch_fast([text], add_special_tokens=False)[0].ids:
            return
        found = detector.encode(text, add_special_tokens=False)
        start, stop = found.offsets[found.ids.index(unknown)]
        raise DataError(
            f"tokenizer {self.path}: has no token for {text[start:stop]!r} (character {start} of"
            " the text), no unknown token and no bytes, so the text would be lost; use a tokenizer"
            " with byte fallback or an unknown token, or take such text out"
        )

    def decode(self, ids: Iterable[int]) -> str:
        ids = _id_array(ids, self.vocab_size)
        kept = [i for i in ids.tolist() if i < self._file_vocab and i not in self._special]
        return self._tokenizer.decode(kept, skip_special_tokens=True)

    @functools.cached_property
    def _byte_level(self) -> bool:
        return '"ByteLevel"' in json.dumps(self._json.get("decoder"), allow_nan=False)

    def token_bytes(self) -> np.ndarray:
        sizes = np.zeros(self.vocab_size, np.int32)
        added = {i: t.content for i, t in self._tokenizer.get_added_tokens_decoder().items()}
        for token, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if index in added:
                sizes[index] = len(added[index].encode("utf-8"))
            elif self._byte_level:
                sizes[index] = len(token)  # in the byte-level alphabet one character is one byte
            else:
                sizes[index] = _piece_bytes(token)
        sizes[sorted(self._special)] = 0
        return sizes

    def pieces(self) -> list[str]:
        named = [""] * self.vocab_size
        for token, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
            named[index] = token
        return named


class GGUFTokenizer(HFTokenizer):
    """The tokenizer in a GGUF file, as the `tokenizer.json` that it would be."""

    kind = "gguf"

    def _read(self, path: str) -> tuple[bytes, dict, str | None]:
        files = gguf_tokenizer_files(expand(path))
        config = parse_json(files["tokenizer_config.json"])
        return files["tokenizer.json"], config, config.get("chat_template")


class SentencePieceTokenizer:
    """A SentencePiece model; BOS and EOS are its own, else new ids after its pieces."""

    kind = "sentencepiece"
    chat_template = None

    def __init__(self, path: str):
        module = require_module("sentencepiece", "hf", f"the tokenizer {path}")
        content = _read_file(path, "the model")
        self._processor = module.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(content)
            self._pieces = self._processor.get_piece_size()
        except (RuntimeError, OSError, TypeError) as error:
            raise DataError(
                f"tokenizer {path}: not a valid SentencePiece model ({error})"
            ) from None
        if not self._pieces:
            raise DataError(f"tokenizer {path}: not a valid SentencePiece model (it has no pieces)")
        self.path = str(path)
        self.vocab_size = self._pieces
        self.bos_id = self._own_or_new(self._processor.bos_id())
        self.eos_id = self._own_or_new(self._processor.eos_id())
        self.unk_id = self._processor.unk_id()
        control = [i for i in range(self._pieces) if self._processor.is_control(i)]
        self.special_tokens = {self._processor.id_to_piece(i): i for i in control}
        self.named_tokens = {}
        self.fingerprint = _fingerprint("sentencepiece", content, self.bos_id, self.eos_id)

    def _own_or_new(self, index: int) -> int:
        if index >= 0:
            return index
        self.vocab_size += 1
        return self.vocab_size - 1

    def encode(self, text: str) -> np.ndarray:
        ids = self._processor.encode(text, out_type=int, add_bos=False, add_eos=False)
        return np.asarray(ids, dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        ids = _id_array(ids, self.vocab_size)
        special = (self.bos_id, self.eos_id)
        return self._processor.decode(
            [i for i in ids.tolist() if i < self._pieces and i not in special]
        )

    def token_bytes(self) -> np.ndarray:
        sizes, model = np.zeros(self.vocab_size, np.int32), self._processor
        for index in range(self._pieces):
            if not (model.is_control(index) or model.is_unknown(index) or model.is_unused(index)):
                piece = model.id_to_piece(index)
                sizes[index] = 1 if model.is_byte(index) else _piece_bytes(piece)
        return sizes

    def pieces(self) -> list[str]:
        named = [self._processor.id_to_piece(index) for index in range(self._pieces)]
        return [*named, *[""] * (self.vocab_size - self._pieces)]


def _chat_template(folder: Path, config: dict) -> str | None:
    """The template in `chat_template.jinja`, else in a `tokenizer_config.json`."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return _read_file(str(path), "the template").decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: invalid UTF-8 at byte {error.start}") from None
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = found.get("default")
    return found if isinstance(found, str) else None


def _piece_bytes(piece: str) -> int:
    """The number of UTF-8 bytes of a SentencePiece piece: "▁" is a space, "<0x0A>" is one byte."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return 1
    return len(piece.replace("▁", " ").encode("utf-8"))


def _read_plainly(module: ModuleType, tokenizer, promoted: list[str]) -> None:
    """Makes the library read text whole, and the names of special tokens in it as text.

    The file may configure truncation, padding and dropout. `promoted` are added tokens that the
    file does not call special.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None  # for training only: text would be cut at random
    present = [name for name in promoted if tokenizer.token_to_id(name) is not None]
    tokenizer.add_special_tokens([module.AddedToken(name, special=True) for name in present])
    tokenizer.encode_special_tokens = True


def _tokenizer_config(path: Path) -> dict:
    """The content of a `tokenizer_config.json`; {} if there is no such file."""
    if not path.is_file():
        return {}
    try:
        config = parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: malformed JSON ({error})") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: is a JSON {type(config).__name__}, not an object")
    return config


class NoTokenizer:
    """Of a model that came without a tokenizer: ids can be read by the model, text cannot.

    Its only id, which begins and ends a document, is 0.
    """

    kind, path = "none", None
    vocab_size, bos_id, eos_id, unk_id = 1, 0, 0, None
    chat_template = None

    def __init__(self, where: str, why: str | None = None):
        """Errors name `where`, the model, and say `why` its tokenizer cannot be read."""
        self.where, self.why = where, why
        self.special_tokens, self.named_tokens = {}, {}
        self.fingerprint = _fingerprint("none", b"", self.bos_id, self.eos_id)

    def encode(self, text: str) -> np.ndarray:
        raise self._refusal()

    def decode(self, ids: Iterable[int]) -> str:
        raise self._refusal()

    def token_bytes(self) -> np.ndarray:
        raise self._refusal()

    def pieces(self) -> list[str]:
        return [""]

    def _refusal(self) -> DataError:
        why = f" ({self.why})" if self.why else ""
        return DataError(
            f"{self.where} came without a tokenizer{why}: only ids can be given to it; a tokenizer.json"
            " in the folder that it is imported from would come along"
        )


def train_bpe(documents: Iterable[str], vocab_size: int, path: str | Path) -> HFTokenizer:
    """Trains a byte-level BPE and writes it as a `tokenizer.json`; training is deterministic.

    Args:
      documents: texts (or `Document`s), read once as a stream.
      vocab_size: total number of ids: 256 bytes, <|bos|>, <|eos|> and vocab_size - 258 merges.
      path: the file to write; it must not exist.

    Returns:
      The tokenizer, opened from the file.

    Raises:
      DataError: if `vocab_size` is below 258 or above 2^24, the file exists, there is no document,
        or the text is too short for that many merges.
    """
    module = require_module("tokenizers", "hf", "training a BPE")
    path = expand(path)
    if vocab_size < 258:
        raise DataError(f"vocab_size is {vocab_size}; 256 bytes and 2 specials need at least 258")
    if vocab_size > _MAX_VOCAB:
        raise DataError(f"vocab_size is {vocab_size}; it must be at most {_MAX_VOCAB} (2^24)")
    if path.exists():
        raise DataError(f"{path} exists; choose another file for the tokenizer")
    tokenizer = module.Tokenizer(module.models.BPE())
    tokenizer.pre_tokenizer = module.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = module.decoders.ByteLevel()
    trainer = module.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=sorted(module.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    count = 0

    def texts():
        nonlocal count
        for document in documents:
            count += 1
            yield document if isinstance(document, str) else document.text

    tokenizer.train_from_iterator(texts(), trainer)
    if not count:
        raise DataError(f"{path}: there is no document to train a tokenizer on")
    if (size := tokenizer.get_vocab_size()) < vocab_size:
        raise DataError(
            f"{path}: the text yields a vocabulary of {size}, not {vocab_size}; "
            f"use a vocab_size of {size} or more text"
        )
    make_folder(path.parent)
    write_text(path, tokenizer.to_str(pretty=True))
    return HFTokenizer(str(path))
