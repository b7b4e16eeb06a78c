"""Sources of kind "jsonl": one JSON object per line."""

from collections.abc import Iterator
from typing import Annotated, Any

from hybridlm.data.examples import Document
from hybridlm.data.files import SourceFile, chunks, lines, utf8
from hybridlm.data.sources.text_source import TextSource, field_text
from hybridlm.errors import DataError
from hybridlm.settings.bounds import NotEmpty, settings
from hybridlm.settings.json_text import parse_json


@settings
class JsonLines(TextSource):
    """JSON Lines, one document per line; names may end in .gz or .zst.

    Attributes:
      text_key: the field that holds the text.
    """

    kind_name = "jsonl"

    text_key: Annotated[str, NotEmpty()] = "text"

    @property
    def read_key(self) -> str:
        return self.text_key

    def read_file(self, file: SourceFile) -> Iterator[Document]:
        for number, line in enumerate(lines(chunks(file.path)), start=1):
            where = f"{file.path}:{number}"
            value = json_object(line, where)
            yield Document(f"{file.name}:{number}", field(value, self.text_key, where))


def present(value: dict, key: str, where: str) -> Any:
    """`value[key]`.

    Raises:
      DataError: if there is no such key; `where` names the line.
    """
    if key not in value:
        keys = ", ".join(map(str, value)) or "none"
        raise DataError(f"{where}: there is no key {key!r}; the keys are: {keys}")
    return value[key]


def field(value: dict, key: str, where: str) -> str:
    """The text of `value[key]`: see `present` and `field_text`."""
    return field_text(present(value, key, where), key, where)


def json_object(line: bytes, where: str) -> dict:
    """The JSON object of one line.

    Raises:
      DataError: if the line is anything else; `where` names it.
    """
    text = utf8(line, where)
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits raises ValueError
        what = "the line is empty" if not text.strip() else f"malformed JSON ({error})"
        raise DataError(f"{where}: {what}; every line must be one JSON object") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: the line is a JSON {type(value).__name__}, not an object")
    return value
