"""Imports run downward only, between packages as between files, in the order of docs/design.md."""

import re

import pytest

from docs import packages
from docs.packages import FLOOR, ROOT

#: Imports inside a function: `hybridlm sweep` starts the launchers above it when it is asked to.
ASKED_FOR = {("hybridlm.commands", "launch")}


@pytest.mark.parametrize("name", FLOOR)
def test_a_package_imports_lower_ones_alone(name):
    wrong = []
    for found in (i for path in packages.files(name) for i in packages.imports(path)):
        other = packages.package(found.module)
        if other == name or FLOOR[other] > FLOOR[name]:
            continue
        if found.top or (name, other) not in ASKED_FOR:
            wrong.append(f"{found.path}:{found.line} imports {found.module}")
    assert not wrong, "\n".join(wrong)


def test_every_package_stands_on_a_floor():
    folders = {p.parent.name for p in (ROOT / "hybridlm").glob("*/__init__.py")}
    stand = {p.removeprefix("hybridlm.") for p in FLOOR if p.startswith("hybridlm.")}
    assert stand == folders | {"errors"}


def test_files_form_no_cycle():
    """Imports at the top of files, within packages too."""
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


def test_nothing_is_imported_for_types_alone():
    """`if TYPE_CHECKING` would hide an import that goes upward."""
    hidden = [
        str(path.relative_to(ROOT))
        for name in FLOOR
        for path in packages.files(name)
        if re.search(r"^if (typing\.)?TYPE_CHECKING", path.read_text(), re.MULTILINE)
    ]
    assert not hidden, hidden


def test_the_picture_in_the_design_is_that_of_the_imports():
    page = packages.PAGE.read_text(encoding="utf-8")
    assert packages.with_picture(page) == page, "run `python docs/packages.py`"
