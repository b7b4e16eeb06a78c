"""Every notebook runs at the size of the tests, and shows what its cells end in.

The cells run in this process, in an IPython shell of their own: a kernel would start jax again for each
notebook. One test runs one in a kernel, as Jupyter does. These tests are slow; `make notebooks`
runs all of them but that in a kernel, and so does CI.
"""

import re
import sys

import jupytext
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure
from nbclient import NotebookClient
from pandas import DataFrame
from traitlets.config import Config

from tests.docs import places
from tests.docs.test_links import CODE, LINK, problem

NAMES = [
    "1_first_hybrid",
    "2_retrieval_heads",
    "3_laziness",
    "4_inside_a_checkpoint",
    "5_own_mixer",
    "6_from_hugging_face",
    "7_pod_checkpoint",
]
SHOWN = {Figure: "image/svg+xml", DataFrame: "text/html", dict: "text/html"}


def read(root, name):
    return jupytext.read(root / "notebooks" / f"{name}.py")


@pytest.fixture
def folder(root, tmp_path, monkeypatch):
    """A folder like the clone's top, without runs."""
    places.link(root, tmp_path)
    (tmp_path / "notebooks").symlink_to(root / "notebooks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYBRIDLM_SMOKE", "1")
    return tmp_path


@pytest.fixture
def shell(monkeypatch):
    """A fresh namespace with the displays of a notebook; what IPython replaces is put back."""
    for name in ("displayhook", "excepthook", "ps1", "ps2", "ps3"):
        monkeypatch.setattr(sys, name, getattr(sys, name, None), raising=False)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    shell.display_formatter.active_types = shell.display_formatter.format_types
    yield shell
    shell.restore_sys_module_state()
    InteractiveShell.clear_instance()


def test_every_notebook_is_tested_and_listed(root):
    assert sorted(p.stem for p in (root / "notebooks").glob("*.py")) == NAMES
    listed = re.findall(r"^\| \[(\w+)\.py\]", (root / "notebooks/README.md").read_text(), re.M)
    assert listed == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(root, name):
    page = root / "notebooks" / f"{name}.py"
    cells = [cell.source for cell in read(root, name).cells if cell.cell_type == "markdown"]
    for target in LINK.findall(CODE.sub("", "\n\n".join(cells))):
        assert problem(page, target) is None, f"{target}: {problem(page, target)}"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, root, folder, shell):
    for number, cell in enumerate(read(root, name).cells):
        if cell.cell_type != "code":
            continue
        ran = shell.run_cell(cell.source)
        failed = ran.error_before_exec or ran.error_in_exec
        assert failed is None, f"cell {number}: {failed!r}\n{cell.source}"
        form = next((f for kind, f in SHOWN.items() if isinstance(ran.result, kind)), None)
        shown = shell.display_formatter.format(ran.result)[0]
        assert form is None or form in shown, f"cell {number} shows only {[*shown]}"


def test_a_mistake_is_shown_as_one_sentence(shell, capsys):
    """As on the command line: without a traceback."""
    shell.run_cell("from hybridlm.config import read\nread(dict(modle={}))")
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert line.startswith("ConfigError: unknown key modle")


@pytest.mark.slow
def test_a_notebook_runs_in_a_kernel(root, folder):
    """As Jupyter runs what jupytext pairs; the figures stand in its outputs."""
    notebook = jupytext.read(root / "notebooks" / "2_retrieval_heads.py")
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_name="python3", resources=resources, timeout=600).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert sum("image/svg+xml" in o.get("data", {}) for o in outputs) == 3
    written = jupytext.writes(notebook, fmt="ipynb")
    assert "image/svg+xml" in written and jupytext.reads(written, fmt="ipynb").cells
