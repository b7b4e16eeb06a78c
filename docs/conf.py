"""The documentation site: `make site` builds it, strictly, from the pages as GitHub shows them.

The source folder is the top of the checkout, so that links between pages are the same on GitHub, in an
editor and on the site. `docs/index.md` gives the order. Nothing is fetched when a page is viewed.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import hybridlm

project = "hybridlm"
copyright = "the hybridlm authors, Apache 2.0"
release = version = hybridlm.__version__
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/**.md",
    "notebooks/*.md",
    "notebooks/*.py",
    "benchmarks/*.md",
    "experiments/*/*.md",
    "experiments/*/data/*.md",
    "data/*/*.md",
    "tests/oracles/*.md",
]
exclude_patterns = [".*", "build", "runs", "wheels", "**/__pycache__", "*.egg-info"]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "myst_parser",
    "docs.extensions.commands",
    "docs.extensions.contents",
    "docs.extensions.docstrings",
    "docs.extensions.mathml",
    "docs.extensions.mermaid",
    "docs.extensions.notebooks",
]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_use_ivar = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 88
# Types of other packages, and words for types, have no page here.
nitpick_ignore_regex = [("py:.*", ".*")]

html_theme = "furo"
html_title = "hybridlm"
html_static_path = ["extensions/static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_additional_pages = {"index": "redirect.html"}
templates_path = ["extensions/templates"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5cad", "color-brand-content": "#0b5cad"},
    "dark_css_variables": {"color-brand-primary": "#7ab8f5", "color-brand-content": "#7ab8f5"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"
