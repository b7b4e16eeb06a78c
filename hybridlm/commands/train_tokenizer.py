"""`hybridlm train-tokenizer`."""

import pathlib
from typing import Annotated

from hybridlm.commands.command import Command
from hybridlm.settings.bounds import NotEmpty, settings
from hybridlm.settings.text import read_options


@settings
class TrainTokenizerSettings:
    """What the tokenizer is trained on, and its file.

    Attributes:
      source: file or glob.
      vocab_size: number of tokens, special tokens included.
      out: path of the tokenizer.json to write.
      kind: text, jsonl, parquet or arrayrecord.
      text_key: field or column that has the text.
    """

    source: Annotated[str, NotEmpty()]
    vocab_size: int
    out: pathlib.Path
    kind: str = "text"
    text_key: str = "text"


def _run(chosen: TrainTokenizerSettings) -> int:
    from hybridlm import data
    from hybridlm.data.settings import SourceConfig

    source = {"kind": chosen.kind, "path": chosen.source, "text_key": chosen.text_key}
    documents = data.read_documents(read_options(SourceConfig, source))
    data.train_bpe(documents, chosen.vocab_size, chosen.out)
    print(f"written to {chosen.out}")
    return 0


TRAIN_TOKENIZER = Command(
    "train-tokenizer",
    "train a byte-level BPE on a source",
    lambda: (TrainTokenizerSettings,),
    _run,
)
