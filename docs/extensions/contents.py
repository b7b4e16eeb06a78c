"""The order of the site is that of docs/index.md: headings are sections, links to pages are entries.

So the index is a plain page on GitHub, and no page is listed twice.
"""

import posixpath
import re

from sphinx.application import Sphinx

HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
LINK = re.compile(r"\[([^]]+)\]\((?!\w+:)([^)#\s]+\.(?:md|py))\)")


def sections(page: str) -> dict[str, dict[str, str]]:
    """The pages that each section of the index links to, and the link's text, at its first place."""
    seen, found = set(), {}
    _, *parts = HEADING.split(page)
    for title, text in zip(parts[::2], parts[1::2]):
        found[title] = {}
        for words, target in LINK.findall(text):
            if target not in seen:
                found[title][target] = " ".join(words.split())
                seen.add(target)
    return found


def entry(words: str) -> str:
    """A link's text as it begins a line: with a capital, unless it begins with the name of a package."""
    first = words.partition(" ")[0]
    return words if "." in first or "_" in first else f"{words[0].upper()}{words[1:]}"


def _add(app: Sphinx, name: str, source: list[str]) -> None:
    if name != app.config.root_doc:
        return
    folder = posixpath.dirname(name)
    for title, links in sections(source[0]).items():
        lines = ["", "```{toctree}", ":hidden:", f":caption: {title}", ""]
        for target, words in links.items():
            path = posixpath.normpath(posixpath.join(folder, target))
            lines.append(f"{entry(words)} </{posixpath.splitext(path)[0]}>")
        source[0] += "\n".join([*lines, "```", ""])


def setup(app: Sphinx) -> dict:
    app.connect("source-read", _add)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
