"""Sources of kind "prompts": JSON Lines of prompts and their completions."""

from collections.abc import Iterator
from typing import Annotated, Any

from hybridlm.data.examples import Completion
from hybridlm.data.files import SourceFile, chunks, lines
from hybridlm.data.sources.jsonl import field, json_object
from hybridlm.data.sources.text_source import TextSource
from hybridlm.data.tokenizers import Tokenizer
from hybridlm.errors import DataError
from hybridlm.settings.bounds import NotEmpty, settings


@settings
class Prompts(TextSource):
    """JSON Lines of a prompt and its completion; names may end in .gz or .zst. The loss counts the
    completion and the end of the document, but not the prompt.

    Attributes:
      prompt_key: the field that holds the prompt; a prompt may be empty.
      completion_key: the field that holds the completion.
    """

    kind_name = "prompts"
    answers_only = True

    prompt_key: Annotated[str, NotEmpty()] = "prompt"
    completion_key: Annotated[str, NotEmpty()] = "completion"

    def describe_reading(self, tokenizer: Tokenizer) -> dict[str, Any]:
        return {"prompt_key": self.prompt_key, "completion_key": self.completion_key}

    def read_file(self, file: SourceFile) -> Iterator[Completion]:
        for number, line in enumerate(lines(chunks(file.path)), start=1):
            where = f"{file.path}:{number}"
            value = json_object(line, where)
            prompt = field(value, self.prompt_key, where)
            completion = field(value, self.completion_key, where)
            if not completion:
                raise DataError(
                    f"{where}: {self.completion_key!r} is empty, so there is nothing to learn; "
                    "remove the line"
                )
            yield Completion(f"{file.name}:{number}", prompt, completion)
