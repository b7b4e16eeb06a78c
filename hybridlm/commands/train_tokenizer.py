"""`hybridlm train-tokenizer`."""

import pathlib
from typing import Annotated

from hybridlm.commands.command import Command
from hybridlm.settings.bounds import NotEmpty, settings


@settings
class TrainTokenizerSettings:
    """What the tokenizer is trained on, and its file.

    Attributes:
      source: file or glob.
      vocab_size: number of tokens, special tokens included.
      out: path of the tokenizer.json to write.
      kind: kind of the source, a kind of text: text, jsonl, parquet, arrayrecord.
      text_key: field or column that has the text; default: text.
    """

    source: Annotated[str, NotEmpty()]
    vocab_size: int
    out: pathlib.Path
    kind: str = "text"
    text_key: str | None = None


def _run(chosen: TrainTokenizerSettings) -> int:
    from hybridlm import data
    from hybridlm.data.sources import text_source
    from hybridlm.progress import doing

    source = text_source(chosen.kind, chosen.source, chosen.text_key)
    documents = source.on_this_machine().documents()
    with doing("training the tokenizer"):
        data.train_bpe(documents, chosen.vocab_size, chosen.out)
    print(f"written to {chosen.out}")
    return 0


TRAIN_TOKENIZER = Command(
    "train-tokenizer",
    "train a byte-level BPE on a source",
    lambda: (TrainTokenizerSettings,),
    _run,
    loads="hybridlm.data",
)
