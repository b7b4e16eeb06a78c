"""GitHub draws ```mermaid graphs with a script. The site shows a graph as a table, which needs none."""

import re

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

NODE = re.compile(r'^\s*(\w+)\["<b>(.+?)</b><br>(.+?)"\]$', re.MULTILINE)
EDGE = re.compile(r"^\s*(\w+) --> (\w+)$", re.MULTILINE)


def rows(graph: str) -> list[tuple[str, str, str]]:
    """(name, what it is, the names that its arrows point to) of each node."""
    found, edges = NODE.findall(graph), EDGE.findall(graph)
    names = {key: name for key, name, _ in found}
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
        content = rows("\n".join(self.content))
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
