"""Sources of kind "text": one document per file."""

from collections.abc import Iterator

from hybridlm.data.examples import Document
from hybridlm.data.files import SourceFile, chunks, utf8
from hybridlm.data.sources.text_source import TextSource
from hybridlm.settings.bounds import settings


@settings
class TextFiles(TextSource):
    """Text files, one document per file; names may end in .gz or .zst."""

    kind_name = "text"

    def read_file(self, file: SourceFile) -> Iterator[Document]:
        yield Document(file.name, utf8(b"".join(chunks(file.path)), str(file.path)))
