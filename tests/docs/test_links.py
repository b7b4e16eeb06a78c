"""Links between pages lead to files and headings; the syntax of external ones is checked, not the network."""

import re
import urllib.parse

import pytest

from docs.extensions import contents
from tests.docs.reading import pages

LINK = re.compile(r"\[[^]]*\]\(([^)]*)\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def slugs(text):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    found = [re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings]
    return {f"{slug}-{found[:i].count(slug)}".removesuffix("-0") for i, slug in enumerate(found)}


def problem(page, target):
    """What is wrong with a link of a page, or None."""
    if re.match(r"\w+:", target):
        url = urllib.parse.urlsplit(target)
        return None if url.scheme in ("http", "https") and "." in url.netloc else "no address"
    if not target or re.search(r"\s", target):
        return "no path"
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    if not file.exists():
        return "no such file"
    if anchor and (file.suffix != ".md" or anchor not in slugs(file.read_text(encoding="utf-8"))):
        return "no such heading"
    return None


def test_every_link_leads_somewhere(root):
    wrong = []
    for name in pages(root):
        page = root / name
        for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
            if found := problem(page, target):
                wrong.append(f"{name}: {target}: {found}")
    assert not wrong, "\n".join(wrong)


def test_the_index_lists_every_page(root):
    index = root / "docs" / "index.md"
    links = [link for found in contents.sections(index.read_text()).values() for link in found]
    listed = {(index.parent / link).resolve().relative_to(root).as_posix() for link in links}
    notebooks = {path.relative_to(root).as_posix() for path in root.glob("notebooks/*.py")}
    assert listed == (set(pages(root)) - {"docs/index.md"}) | notebooks


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        ("b.md", None),
        ("b.md#a-heading", None),
        ("#own", None),
        ("https://example.org/x", None),
        ("c.md", "no such file"),
        ("b.md#other", "no such heading"),
        ("#a-heading", "no such heading"),
        ("https:/example", "no address"),
        ("b .md", "no path"),
        ("", "no path"),
    ],
)
def test_broken_links_are_found(tmp_path, target, wrong):
    (tmp_path / "a.md").write_text("# Own\n```sh\n# a heading\n```\n")
    (tmp_path / "b.md").write_text("# A heading!\n")
    assert problem(tmp_path / "a.md", target) == wrong
