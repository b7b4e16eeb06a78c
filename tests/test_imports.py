"""Packages import only lower packages, in the order of docs/design.md; files form no cycle."""

import re

import pytest

from docs import packages
from docs.packages import FLOOR, ROOT

#: Imports of a higher package inside a function: `hybridlm sweep` starts the launchers.
LAZY = {("hybridlm.commands", "launch")}


@pytest.mark.parametrize("name", FLOOR)
def test_a_package_imports_only_lower_packages(name):
    wrong = []
    for found in (i for path in packages.files(name) for i in packages.imports(path)):
        other = packages.package(found.module)
        if other == name or FLOOR[other] > FLOOR[name]:
            continue
        if found.top or (name, other) not in LAZY:
            wrong.append(f"{found.path}:{found.line} imports {found.module}")
    assert not wrong, "\n".join(wrong)


def test_every_package_has_a_floor():
    folders = {p.parent.name for p in (ROOT / "hybridlm").glob("*/__init__.py")}
    listed = {p.removeprefix("hybridlm.") for p in FLOOR if p.startswith("hybridlm.")}
    assert listed == folders | {"errors", "progress"}


def test_files_form_no_cycle():
    """Counts imports at the top of files, within packages too."""
    edges = {
        packages.module_of(path): {i.module for i in packages.imports(path) if i.top}
        for name in FLOOR
        for path in packages.files(name)
    }
    done, path = set(), []

    def visit(module):
        if module in path:
            raise AssertionError(" imports ".join([*path[path.index(module) :], module]))
        if module not in done:
            path.append(module)
            for other in sorted(edges.get(module, ())):
                visit(other)
            done.add(path.pop())

    for module in edges:
        visit(module)


def test_no_import_is_under_type_checking():
    """`if TYPE_CHECKING` would hide an import of a higher package."""
    hidden = [
        str(path.relative_to(ROOT))
        for name in FLOOR
        for path in packages.files(name)
        if re.search(r"^if (typing\.)?TYPE_CHECKING", path.read_text(), re.MULTILINE)
    ]
    assert not hidden, hidden


def test_the_diagram_in_the_design_shows_the_imports():
    page = packages.PAGE.read_text(encoding="utf-8")
    assert packages.with_picture(page) == page, "run `python docs/packages.py`"


def test_names_of_test_files_are_unique():
    """pytest imports a test file by its name alone; of two with one name it collects neither."""
    names = [path.name for path in (ROOT / "tests").glob("**/test_*.py")]
    assert sorted(set(names)) == sorted(names)
