"""Notebooks in jupytext's percent format as pages: what they say and their code, not executed."""

import jupytext
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx


def markdown(script: str) -> str:
    """The cells of a script in percent format as one Markdown page."""
    cells = jupytext.reads(script, fmt="py:percent").cells
    text = {"markdown": "{}", "code": "```python\n{}\n```", "raw": ""}
    return "\n\n".join(text[cell.cell_type].format(cell.source) for cell in cells) + "\n"


class NotebookParser(MystParser):
    """Reads a `.py` file in percent format."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document) -> None:
        super().parse(markdown(inputstring), document)


def setup(app: Sphinx) -> dict:
    app.add_source_parser(NotebookParser)
    app.add_source_suffix(".py", "notebook")
    return dict(parallel_read_safe=True, parallel_write_safe=True)
