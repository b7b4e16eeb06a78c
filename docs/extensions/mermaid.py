"""GitHub draws ```mermaid graphs with a script. The site shows a graph as a table, which needs none."""

import re

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

NODE = re.compile(r'^\s*(\w+)\["<b>(.+?)</b><br>(.+?)"\]$', re.MULTILINE)
EDGE = re.compile(r"^\s*(\w+) --> (\w+)$", re.MULTILINE)
HEADER = re.compile(r"^\s*graph \w+$", re.MULTILINE)
#: What a line may be, for errors.
FORM = 'write key["<b>name</b><br>what it is"], and key --> key'


def rows(graph: str) -> list[tuple[str, str, str]]:
    """(name, what it is, the names that its arrows point to) of each node.

    Raises:
      ValueError: for a graph without nodes, a line that is neither node nor arrow, and an arrow from
        or to no node.
    """
    found, edges = NODE.findall(graph), EDGE.findall(graph)
    names = {key: name for key, name, _ in found}
    if not names:
        raise ValueError(f"a graph needs nodes: {FORM}")
    for line in graph.splitlines():
        if line.strip() and not any(kind.match(line) for kind in (HEADER, NODE, EDGE)):
            raise ValueError(
                f"a line of a graph is neither node nor arrow: {line.strip()!r}; {FORM}"
            )
    for key in (key for edge in edges for key in edge):
        if key not in names:
            raise ValueError(f"an arrow of a graph names {key!r}, which is none of its nodes")
    return [
        (name, text, ", ".join(names[to] for start, to in edges if start == key))
        for key, name, text in found
    ]


class Graph(Directive):
    has_content = True

    def run(self) -> list[nodes.Node]:
        group = nodes.tgroup(cols=3)
        group += [nodes.colspec(colwidth=1) for _ in range(3)]
        heading = [("package", "what it holds", "imports (and what these import)")]
        try:
            content = rows("\n".join(self.content))
        except ValueError as error:
            raise self.error(str(error)) from error
        for kind, part in ((nodes.thead, heading), (nodes.tbody, content)):
            body = kind()
            for cells in part:
                row = nodes.row()
                row += [nodes.entry("", nodes.paragraph(text=cell)) for cell in cells]
                body += row
            group += body
        return [nodes.table("", group)]


def setup(app: Sphinx) -> dict:
    app.add_directive("mermaid", Graph)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
