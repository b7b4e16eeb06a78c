"""The documentation site: it builds without a warning, needs no network, and lists every page once."""

import html.parser
import io
import subprocess
import sys

import docutils.core
import docutils.nodes
import pytest
from docutils.parsers.rst import directives

from docs.extensions import contents, docstrings, mermaid, notebooks
from tests.browser import browser, installed

pytestmark = pytest.mark.xdist_group("site")  # one build for all tests


def test_sections_of_the_index_are_headings_with_their_links():
    page = """# Title

[no section](before.md)

## One

- [a
  page](a.md) and [elsewhere](https://example.org/x.md), [a heading](a.md#part), [again](a.md)

## Two

- [a notebook](../notebooks/b.py), [a page](a.md), [a drawing](c.svg)
"""
    assert contents.sections(page) == {
        "One": {"a.md": "a page"},
        "Two": {"../notebooks/b.py": "a notebook"},
    }


@pytest.mark.parametrize(
    ("words", "entry"),
    [
        ("a mixer of your own", "A mixer of your own"),
        ("hybridlm.config, train, generation", "hybridlm.config, train, generation"),
        ("kernels_pallas", "kernels_pallas"),
        ("runs, see a.b", "Runs, see a.b"),
    ],
)
def test_entries_begin_with_a_capital_but_names_of_packages_do_not(words, entry):
    assert contents.entry(words) == entry


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("a `b_` c", "a ``b_`` c"),
        ("`Document`s", r"``Document``\ s"),
        ("blocks.*.x | y", r"blocks.\*.x \| y"),
        ("a name_ and q_BTHK", r"a name\_ and q_BTHK"),
        ("code `over\ntwo` lines", "code ``over\ntwo`` lines"),
        ("``a * b``", "``a * b``"),
    ],
)
def test_docstrings_become_restructuredtext(text, marked):
    assert docstrings.marked_up(text) == marked


def test_a_graph_is_a_table_of_its_nodes():
    graph = 'graph TD\n  a["<b>one</b><br>x: y"]\n  b["<b>two</b><br>z"]\n  a --> b\n'
    assert mermaid.rows(graph) == [("one", "x: y", "two"), ("two", "z", "")]


@pytest.mark.parametrize(
    ("graph", "wrong"),
    [
        ("graph TD\n  A --> B\n", "needs nodes"),
        ('graph TD\n  a["<b>one</b><br>x"]\n  a --> c\n', "'c', which is none"),
        ('graph TD\n  a["<b>one</b><br>x"]\n  a -- to --> a\n', "neither node nor arrow"),
    ],
)
def test_a_graph_that_no_table_shows_is_an_error(graph, wrong):
    """Sphinx reports it with its page and line, as it does every error of a directive."""
    with pytest.raises(ValueError, match=wrong):
        mermaid.rows(graph)
    settings = dict(warning_stream=io.StringIO(), report_level=5)
    directives.register_directive("mermaid", mermaid.Graph)
    body = "".join(f"   {line}\n" for line in graph.splitlines())
    tree = docutils.core.publish_doctree(f".. mermaid::\n\n{body}", settings_overrides=settings)
    (message,) = tree.findall(docutils.nodes.system_message)
    assert message["level"] == 3 and wrong in message.astext()


def test_a_notebook_becomes_markdown():
    script = "# ---\n# jupyter: {}\n# ---\n\n# %% [markdown]\n# # Title\n\n# %%\nx = 1\n"
    page = notebooks.markdown(script)
    assert page.index("# Title") < page.index("```python\nx = 1\n```")
    assert "jupyter" not in page


class _Fetched(html.parser.HTMLParser):
    """Collects what a browser fetches by itself: scripts, styles, images, frames."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.found.append(attrs.get("src"))
        elif tag == "link" and attrs.get("rel") not in ("index", "search", "next", "prev"):
            self.found.append(attrs.get("href"))


@pytest.fixture(scope="module")
def site(request, tmp_path_factory):
    """The folder of the site, built as `make site` builds it: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-c", "docs", *"-W --keep-going -n -q .".split(), folder],
        cwd=request.config.rootpath,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        parser = _Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        for address in filter(None, parser.found):
            assert not address.startswith(("http:", "https:", "//")), f"{page}: {address}"
            path = page.parent / address.partition("?")[0]
            assert address.startswith("data:") or path.exists(), f"{page}: {address}"
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert "@import" not in text and "url(http" not in text and "url(//" not in text, style
    assert "docs/index.html" in (site / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(installed() is None, reason="no Chromium is installed")
@pytest.mark.parametrize(
    ("width", "height", "scheme"), [(1280, 900, "dark"), (390, 844, "light")], ids=["desk", "phone"]
)
def test_the_site_in_a_browser(site, tmp_path, width, height, scheme):
    """No page is wider than the window, complains, or asks the network for anything."""
    with browser(tmp_path / "profile") as tab:
        for page in sorted(site.rglob("*.html")):
            if page.parent == site and page.stem == "index":
                continue  # sends its reader to docs/index.html
            tab.open(page.as_uri(), width, height, scheme)
            root = "document.documentElement"
            assert tab.run(f"{root}.scrollWidth - {root}.clientWidth") <= 0, page
        assert not tab.messages
        assert all(request.startswith(("file:", "data:")) for request in tab.requests)
