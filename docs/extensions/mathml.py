"""Equations as MathML, which browsers draw themselves: no script, no font."""

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx


def _inline(self, node: nodes.math) -> None:
    self.body.append(latex2mathml.tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _block(self, node: nodes.math_block) -> None:
    equation = latex2mathml.tex2mathml(node.astext().strip(), as_block=True)
    self.body.append(f'<div class="equation">{equation}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return dict(parallel_read_safe=True, parallel_write_safe=True)
