"""Renders conversations by a Jinja chat template, and finds the answers in the result.

Templates are those of Hugging Face tokenizers: `messages`, `add_generation_prompt` and the names of
special tokens (`eos_token` ...) are given, and `{% generation %}` may mark the answers. Without
these marks an answer begins where the template asks for one (`add_generation_prompt`) and ends with
the last special token that the template writes before the next message.

The template's special tokens are tokens; their names in a message are ordinary text. For this, the
names in messages are replaced by private-use characters while the template runs.
"""

import functools
import json
import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from hybridlm.data.files import require_module
from hybridlm.data.tokenizers import Tokenizer
from hybridlm.errors import DataError

_START, _END = "\U0010fff0", "\U0010fff1"  # around what a template marks as generated
_NAMES = 0x100000  # the private-use character of the first special token's name
_PRIVATE = re.compile("[\U00100000-\U0010ffff]")


class Piece(NamedTuple):
    """A part of a conversation: ordinary text, or one special token.

    Attributes:
      text: the text, or the token's name.
      answer: whether it is to be learned.
      token: the special token's id; None for text.
    """

    text: str
    answer: bool
    token: int | None = None


def plain_pieces(messages: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> list[Piece]:
    """A conversation for tokenizers without a template: "role", newline, content, EOS; and again."""
    pieces = []
    for message in messages:
        answer = message["role"] == "assistant"
        head, content = f"{message['role']}\n", message["content"]
        if answer:  # on its own, as the head is when an answer is generated
            pieces += [Piece(head, False), Piece(content, True)]
        else:
            pieces.append(Piece(head + content, False))
        pieces.append(Piece("", answer, tokenizer.eos_id))
    return pieces


def template_pieces(
    messages: Sequence[dict[str, Any]], tokenizer: Tokenizer, template: str
) -> list[Piece]:
    """A conversation as `template` renders it.

    Raises:
      DataError: if the template is invalid or refuses the messages, or the answers cannot be found.
    """
    names = sorted(tokenizer.special_tokens, key=len, reverse=True)
    messages = [_hidden(message, names) for message in messages]

    def render(count: int, ask: bool = False) -> str:
        return _render(template, tokenizer, messages[:count], ask)

    text = render(len(messages))
    if _START not in text:
        spans = _answer_spans(messages, render, text, names)
        for start, end in reversed(spans):
            text = text[:start] + _START + text[start:end] + _END + text[end:]
    return _cut(text, names, tokenizer.special_tokens)


def _hidden(value: Any, names: Sequence[str]) -> Any:
    """A message with the names of special tokens replaced by private-use characters."""
    if isinstance(value, dict):
        return {key: _hidden(v, names) for key, v in value.items()}
    if isinstance(value, list):
        return [_hidden(v, names) for v in value]
    if not isinstance(value, str):
        return value
    if found := _PRIVATE.search(value):
        raise DataError(f"a message has the private-use character U+{ord(found[0]):X}; take it out")
    for index, name in enumerate(names):
        value = value.replace(name, chr(_NAMES + index))
    return value


def _answer_spans(messages, render, text: str, names: Sequence[str]) -> list[tuple[int, int]]:
    """(start, end) of each answer in `text`, from renderings of the first messages alone."""
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = render(index, ask=True), render(index + 1)
        for beginning, count in ((before, index), (after, index + 1)):
            if not text.startswith(beginning):
                raise DataError(
                    f"the chat template does not render the first {count} messages as the"
                    f" beginning of all {len(messages)}, so that answers cannot be found: mark them"
                    " in the template with {% generation %} and {% endgeneration %}"
                )
        tokens = [m.end() for m in _pattern(names).finditer(after, len(before))] if names else []
        end = tokens[-1] if tokens else len(after)
        if end <= len(before):
            raise DataError(f"the chat template writes nothing for message {index + 1}")
        spans.append((len(before), end))
    return spans


@functools.lru_cache(maxsize=8)
def _compiled_pattern(names: tuple[str, ...]) -> re.Pattern:
    return re.compile("|".join(map(re.escape, names)))


def _pattern(names: Sequence[str]) -> re.Pattern:
    return _compiled_pattern(tuple(names))


def _cut(text: str, names: Sequence[str], ids: dict[str, int]) -> list[Piece]:
    """Cuts a rendered conversation at special tokens and at the marks of answers."""
    pieces: list[Piece] = []
    answer = False

    def add(part: str) -> None:
        shown = _PRIVATE.sub(lambda found: names[ord(found[0]) - _NAMES], part)
        if shown:
            pieces.append(Piece(shown, answer))

    at = 0
    for found in _pattern([_START, _END, *names]).finditer(text):
        add(text[at : found.start()])
        at = found.end()
        if found[0] in (_START, _END):
            answer = found[0] == _START
        else:
            pieces.append(Piece(found[0], answer, ids[found[0]]))
    add(text[at:])
    return pieces


def _render(template: str, tokenizer: Tokenizer, messages: list, ask: bool) -> str:
    jinja = _jinja()
    given = {**tokenizer.named_tokens, "messages": messages, "add_generation_prompt": ask}
    try:
        return _compiled(template).render(**given, tools=None, documents=None)
    except DataError:
        raise
    except jinja.TemplateSyntaxError as error:
        raise DataError(f"the chat template is invalid in line {error.lineno}: {error}") from None
    except Exception as error:  # a template may run into any error of Python's
        raise DataError(f"the chat template refuses the messages: {error}") from None


def _jinja() -> Any:
    return require_module("jinja2", "hf", "a chat template")


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """The template in a sandbox: it can call no code and change no value that it is given."""
    jinja = _jinja()
    sandbox = require_module("jinja2.sandbox", "hf", "a chat template")
    extensions = ["jinja2.ext.loopcontrols", _generation_extension()]
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )

    def refuse(message: str) -> None:
        raise jinja.TemplateError(message)

    # No strftime_now: what a template renders must not depend on the day.
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, ensure_ascii=False, indent=None: json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, allow_nan=True
    )
    return environment.from_string(template)


@functools.cache
def _generation_extension() -> type:
    """Jinja's extension for `{% generation %}`: it puts marks around the block."""
    ext = require_module("jinja2.ext", "hf", "a chat template")
    nodes = SimpleNamespace(CallBlock=require_module("jinja2.nodes", "hf", "").CallBlock)

    class Generation(ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller) -> str:
            return _START + caller() + _END

    return Generation
