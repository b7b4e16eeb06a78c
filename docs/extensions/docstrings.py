"""Docstrings are plain text with `code` in single backticks; reStructuredText needs two, and escapes."""

import re

from sphinx.application import Sphinx

CODE = re.compile(r"(``.+?``|`(?:[^`\n]|\n(?!\s*\n))+`)")
SPECIAL = re.compile(r"(?<!\\)([*|])|(?<=\w)_(?=\W|$)")


def marked_up(text: str) -> str:
    """A text with its code in double backticks and other special characters escaped."""
    parts = CODE.split(text)
    for i, part in enumerate(parts):
        if i % 2:
            before, after = parts[i - 1][-1:], parts[i + 1][:1]
            code = part if part.startswith("``") else f"`{part}`"
            # Markup must end where a word does; an escaped space is none in the output.
            parts[i] = "\\ " * before.isalnum() + code + "\\ " * after.isalnum()
        else:
            parts[i] = SPECIAL.sub(lambda m: f"\\{m[0]}", part)
    return "".join(parts)


def _process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]):
    lines[:] = marked_up("\n".join(lines)).split("\n")
    if what in ("attribute", "property"):
        lines.insert(0, "")  # else napoleon takes what stands before a colon for a type


def _skip(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leaves out fields of NamedTuples, which the docstring of the class describes."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict:
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _process, priority=400)  # before napoleon
    return dict(parallel_read_safe=True, parallel_write_safe=True)
