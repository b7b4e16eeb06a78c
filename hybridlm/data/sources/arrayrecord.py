"""Sources of kind "arrayrecord": one document per record."""

from collections.abc import Iterator

from hybridlm.data.examples import Document
from hybridlm.data.files import SourceFile, require_module, utf8
from hybridlm.data.sources.text_source import TextSource
from hybridlm.errors import DataError
from hybridlm.settings.bounds import settings


@settings
class ArrayRecords(TextSource):
    """ArrayRecord files, one document in UTF-8 per record."""

    kind_name = "arrayrecord"
    needs = ("array_record.python.array_record_module",)

    def read_file(self, file: SourceFile) -> Iterator[Document]:
        module = require_module(
            "array_record.python.array_record_module", "data", f"reading {file.path}"
        )
        try:
            reader = module.ArrayRecordReader(str(file.path))
            count = reader.num_records()
            for start in range(0, count, 64):
                stop = min(start + 64, count)
                records = reader.read(start, stop)
                if len(records) != stop - start:
                    raise RuntimeError(f"records {start} to {stop} are incomplete")
                for index, record in enumerate(records, start):
                    yield Document(f"{file.name}:{index}", utf8(record, f"{file.path}:{index}"))
            reader.close()
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            reason = " ".join(str(error).split()) or "truncated or corrupt"
            raise DataError(
                f"{file.path}: not a readable ArrayRecord file ({reason}); copy it again"
            ) from None
