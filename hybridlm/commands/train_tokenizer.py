"""`hybridlm train-tokenizer`."""

import dataclasses
import pathlib

from hybridlm.commands.command import Command
from hybridlm.settings.reader import require
from hybridlm.settings.text import read_options


@dataclasses.dataclass(frozen=True)
class TrainTokenizerSettings:
    """What the tokenizer is trained on, and where it goes.

    Attributes:
      source: file or glob.
      vocab_size: tokens, specials included.
      out: tokenizer.json to write.
      kind: text, jsonl, parquet or arrayrecord.
      text_key: field or column of the text.
    """

    source: str
    vocab_size: int
    out: pathlib.Path
    kind: str = "text"
    text_key: str = "text"

    def __post_init__(self):
        require(bool(self.source), "source", "is empty: name a file or a glob")


def _run(settings: TrainTokenizerSettings) -> int:
    from hybridlm import data
    from hybridlm.data.settings import SourceConfig

    source = {"kind": settings.kind, "path": settings.source, "text_key": settings.text_key}
    documents = data.read_documents(read_options(SourceConfig, source))
    data.train_bpe(documents, settings.vocab_size, settings.out)
    print(f"written to {settings.out}")
    return 0


TRAIN_TOKENIZER = Command(
    "train-tokenizer",
    "train a byte-level BPE on a source",
    lambda: (TrainTokenizerSettings,),
    _run,
)
