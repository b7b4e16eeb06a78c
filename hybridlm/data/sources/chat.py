"""Sources of kind "chat": JSON Lines of conversations."""

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any

from hybridlm.data.examples import Conversation
from hybridlm.data.files import SourceFile, chunks, lines, require_module, utf8
from hybridlm.data.sources.jsonl import json_object, present
from hybridlm.data.sources.text_source import TextSource, field_text
from hybridlm.data.tokenizers import Tokenizer
from hybridlm.errors import DataError
from hybridlm.settings.bounds import IsPath, NotEmpty, settings
from hybridlm.storage import expand

ROLES = ("system", "developer", "user", "assistant", "tool")


@settings
class Chat(TextSource):
    """JSON Lines of conversations; names may end in .gz or .zst. The loss counts what the assistant
    says, in every turn, and the token that ends the turn.

    Attributes:
      messages_key: the field that holds the messages, a list of objects with "role" (system,
        developer, user, assistant or tool) and "content" (text).
      template: a file with a Jinja chat template; None takes the tokenizer's own
        (`chat_template.jinja` or `tokenizer_config.json` beside it), or, where it has none, role,
        newline, content and end of document for each message.
    """

    kind_name = "chat"
    answers_only = True

    messages_key: Annotated[str, NotEmpty()] = "messages"
    template: Annotated[str, NotEmpty(), IsPath()] | None = None

    def check(self, tokenizer: Tokenizer, files: bool = True) -> list[str]:
        names = super().check(tokenizer, files)
        if files:
            self._template()
        if self.template is not None or tokenizer.chat_template is not None:
            require_module("jinja2", "hf", "a chat template")
        return names

    def describe_reading(self, tokenizer: Tokenizer) -> dict[str, Any]:
        template = self._template()
        template = tokenizer.chat_template if template is None else template
        digest = None if template is None else hashlib.sha256(template.encode()).hexdigest()
        return {"messages_key": self.messages_key, "template_sha256": digest}

    def read_file(self, file: SourceFile) -> Iterator[Conversation]:
        template = self._template()
        for number, line in enumerate(lines(chunks(file.path)), start=1):
            where = f"{file.path}:{number}"
            found = present(json_object(line, where), self.messages_key, where)
            if not isinstance(found, list) or not found:
                raise DataError(f"{where}: {self.messages_key!r} is no list of messages")
            for index, message in enumerate(found, start=1):
                _check(message, f"{where}, message {index}")
            if not any(message["role"] == "assistant" for message in found):
                raise DataError(
                    f"{where}: no message has the role 'assistant', so there is nothing to learn; "
                    "remove the line"
                )
            yield Conversation(f"{file.name}:{number}", tuple(found), template)

    def _template(self) -> str | None:
        if self.template is None:
            return None
        path = expand(self.template)
        try:
            return utf8(path.read_bytes(), str(path))
        except OSError as error:
            raise DataError(f"the chat template {path} cannot be read ({error.strerror})") from None


def _check(message: Any, where: str) -> None:
    if not isinstance(message, dict):
        raise DataError(f"{where}: is a JSON {type(message).__name__}, not an object")
    role = field_text(present(message, "role", where), "role", where)
    if role not in ROLES:
        raise DataError(f"{where}: the role is {role!r}; valid are: {', '.join(ROLES)}")
    content = field_text(present(message, "content", where), "content", where)
    if role == "assistant" and not content:
        raise DataError(f"{where}: the assistant's content is empty, so there is nothing to learn")
