"""The files that a tokenizer consists of, under the names that transformers gives them."""

from hybridlm.data.gguf_tokenizer import gguf_tokenizer_files
from hybridlm.data.tokenizers import Tokenizer
from hybridlm.storage import expand

#: The name of the main file, by kind.
MAIN = {"hf": "tokenizer.json", "sentencepiece": "tokenizer.model"}
#: What may lie beside it: special tokens by role, and the template of conversations.
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The contents of a tokenizer's files by name, the main one first; {} for one without a file."""
    if tokenizer.kind == "gguf":
        return gguf_tokenizer_files(expand(tokenizer.path))
    if tokenizer.kind not in MAIN or tokenizer.path is None:
        return {}
    path = expand(tokenizer.path)
    beside = [path.with_name(name) for name in BESIDE]
    return {MAIN[tokenizer.kind]: path.read_bytes()} | {
        file.name: file.read_bytes() for file in beside if file.is_file()
    }
