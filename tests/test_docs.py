"""Generated pages and tables are up to date, and commands named in a text exist.

Blocks of code, links and the site: tests/docs.
"""

import json
import re
import tomllib

import pytest

from hybridlm.commands import document as tables
from hybridlm.config.document import render
from hybridlm.data.sources import KINDS
from hybridlm.models.mixers import document as mixers_page
from tests.docs.reading import pages

#: Names the target of the Makefile that its own commit had.
OF_AN_OLDER_COMMIT = "experiments/large_window_laziness/FIRST_PROTOCOL.md"


def test_the_page_of_settings_is_up_to_date(root):
    assert (root / "docs" / "config.md").read_text() == render(), (
        "run: python -m hybridlm.config.document > docs/config.md"
    )


def test_the_page_of_mixers_is_up_to_date(root):
    """No recorded law has failed, but for two draws that docs/design.md explains."""
    record = json.loads((root / mixers_page.RECORD).read_text())
    assert (root / "docs" / "mixers.md").read_text() == mixers_page.render(record), (
        "run: python -m hybridlm.models.mixers.document > docs/mixers.md"
    )
    assert record["passed"] and set(record["passed"]) <= set(mixers_page.KINDS)
    failed = [
        f"{variant}, {law}"
        for variants in record["passed"].values()
        for variant, laws in variants.items()
        for law, passed in laws.items()
        if not passed
    ]
    ill_conditioned = {
        f"{name}, chunked = reference, float32" for name in ("gdn_grouped", "kda_bounded")
    }
    assert set(failed) == ill_conditioned, failed


def test_no_table_is_cut(root):
    """A row that a blank line separates from its table would be shown as text."""
    for page in pages(root):
        lines = ["", *(root / page).read_text(encoding="utf-8").splitlines(), ""]
        for number, (before, line, after) in enumerate(zip(lines, lines[1:], lines[2:]), start=1):
            begins = line.startswith("|") and not before.startswith("|")
            assert not begins or re.match(r"\|[ :|-]+\|$", after), f"{page}:{number}: {line}"


@pytest.mark.parametrize("name", tables.PAGES)
def test_the_tables_of_tasks_and_probes_are_up_to_date(root, name):
    text = (root / "docs" / name).read_text()
    assert tables.BEGIN in text and text == tables.written(text, name), (
        "run: python -m hybridlm.commands.document"
    )


def test_make_targets_of_the_pages_exist(root):
    of_this_commit = [page for page in pages(root) if page != OF_AN_OLDER_COMMIT]
    text = "\n".join((root / page).read_text(encoding="utf-8") for page in of_this_commit)
    makefile = (root / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)(?!\S*=)", text, re.MULTILINE))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"no target {target}"


def test_the_design_names_every_extra_and_its_packages(root):
    text = (root / "docs" / "design.md").read_text()
    (extras,) = re.findall(r"Extras: (.+)\.$", text, re.MULTILINE)
    named = dict(re.findall(r"`([a-z0-9]+)`(?: \(([^)]+)\))?(?:, |$)", extras))
    with (root / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)["project"]["optional-dependencies"]
    assert set(named) == set(declared)
    for extra in ("hf", "data", "launch", "analysis", "docs", "notebooks"):
        packages = [re.sub(r"[\[<>=].*", "", name) for name in declared[extra]]
        said = [name for name in named[extra].split(", ") if not name.startswith("`")]
        assert said == [name for name in packages if name != "hybridlm"], extra


def test_the_design_names_every_dependency(root):
    text = (root / "docs" / "design.md").read_text()
    (stack,) = re.findall(r"^Python .*?; (.+)\. Extras: ", text, re.MULTILINE)
    named = re.split(r"[,;] ", re.sub(r" \([^)]*\)", "", stack))
    with (root / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)["project"]["dependencies"]
    assert [re.split(r"[ .]", name)[0] for name in named] == [
        re.sub(r"[\[<>=].*", "", name) for name in declared
    ]


def test_the_page_on_data_names_every_kind_of_source(root):
    text = (root / "docs" / "data.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(KINDS)
