"""Every code block of the documentation runs, page by page, or says why it does not."""

import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from hybridlm.storage.paths import open_path
from tests.docs import checks, places, reading

pytestmark = pytest.mark.xdist_group("pages")  # one demo for all pages

SWEEP = "tests/launch/test_sweeps_page.py"  # interrupts the page's real sweep and continues it
SEARCH = "tests/distill/selection/test_search.py"  # runs the page's search twice


class Page(NamedTuple):
    """How a page is run.

    Attributes:
      prepare: makes what the page assumes and returns names.
      changes: regular expressions and replacements that make its commands smaller.
      more: options by command that its commands get, too.
      elsewhere: of commands with this word the test file that reads the page and runs them.
      check: looks at what the commands wrote, given what they said.
      prints: whether each of its blocks of Python does.
      slow: whether it takes long.
    """

    prepare: Callable[[], dict[str, Any]] = dict
    changes: tuple[tuple[str, str], ...] = ()
    more: tuple[tuple[str, tuple[str, ...]], ...] = ()
    elsewhere: tuple[tuple[str, str], ...] = ()
    check: Callable[[list[str]], None] = lambda said: None
    prints: bool = False
    slow: bool = False


SMOKE = (r"^(configs/demo\.py)$", r"\1:smoke")
#: The demo of these tests is small, and so is the model that begins with its parameters.
FINETUNED = (
    "--init_from",
    "runs/demo",
    "--config.train.steps=40",
    "--config.optimizer.lr=0.01",
)
#: Pages whose blocks need more than a finished run of the demo.
PAGES = {
    "README.md": Page(check=checks.of_readme, prints=True),
    "docs/analysis.md": Page(places.of_analysis, prints=True, slow=True),
    "docs/convert.md": Page(places.of_convert, check=checks.of_convert),
    "docs/data.md": Page(prints=True),
    "docs/distill.md": Page(places.of_distill, check=checks.of_distill, slow=True),
    "docs/evals.md": Page(places.of_evals, check=checks.of_evals, slow=True),
    "docs/finetuning.md": Page(
        changes=((r"finetune\.py", "finetune.py:smoke"),),
        more=(("train", (*places.QUICK, *FINETUNED)),),
        check=checks.of_finetuning,
        slow=True,
    ),
    "docs/gallery.md": Page(check=checks.of_gallery, slow=True),
    "docs/probes.md": Page(
        places.of_probes,
        changes=(SMOKE,),
        more=(("train", ("--config.data.seq_len=256",)),),
        check=checks.of_probes,
        slow=True,
    ),
    "docs/report.md": Page(places.of_reports, check=checks.of_reports, slow=True),
    "docs/runs.md": Page(
        changes=((r"(life\.py:\w+)", r"\1,smoke"), ("^100$", "2")),
        check=checks.of_runs,
        slow=True,
    ),
    "docs/selection.md": Page(elsewhere=(("--teacher", SEARCH),)),
    "docs/sweeps.md": Page(elsewhere=(("--parallel", SWEEP),), check=checks.of_sweeps),
    "experiments/large_window_laziness/README.md": Page(slow=True),
}
IN_BUCKETS = "docs/storage.md"


def pytest_generate_tests(metafunc):
    if "page" in metafunc.fixturenames:
        root = metafunc.config.rootpath
        blocks = {name: reading.blocks((root / name).read_text()) for name in reading.pages(root)}
        names = [name for name, found in blocks.items() if found and name != IN_BUCKETS]
        marks = {True: [pytest.mark.slow], False: []}
        chosen = [(name, PAGES.get(name, Page())) for name in names]
        metafunc.parametrize(
            ("name", "page"),
            [pytest.param(name, page, id=name, marks=marks[page.slow]) for name, page in chosen],
        )


@pytest.fixture(scope="module")
def demo(tmp_path_factory, request):
    """The folder of a finished smoke run of the demo, at runs/demo."""
    top = tmp_path_factory.mktemp("demo")
    places.link(request.config.rootpath, top)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top)
        places.train_demo()
    return top / "runs" / "demo"


@pytest.fixture
def place(demo, root, tmp_path, monkeypatch):
    """A folder of its own with links to the checkout and a copy of the demo's run."""
    places.link(root, tmp_path)
    shutil.copytree(demo, tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_blocks_of_a_page_run(place, root, name, page, capsys):
    names = page.prepare()
    capsys.readouterr()

    def change(words):
        for word, test in page.elsewhere:
            if word in words:
                assert f'"{pathlib.Path(name).name}"' in (root / test).read_text(), test
                return None
        for pattern, new in page.changes:
            words = [re.sub(pattern, new, word) for word in words]
        return [*words, *dict(page.more).get(words[1], ())]

    reader = reading.Reader(root, capsys.readouterr, names, change)
    reader.read(name)
    assert not reader.not_run, "cannot be run, and does not say so:\n" + "\n".join(reader.not_run)
    assert not (page.prints and reader.silent), f"these print nothing: {reader.silent}"
    page.check(reader.said)


@pytest.mark.slow
def test_the_commands_on_buckets_run(bucket, in_root, root, capsys):
    def change(words):
        return [word.replace("s3://bucket", bucket) for word in words]

    reader = reading.Reader(root, capsys.readouterr, change=change)
    reader.read(IN_BUCKETS)
    assert not reader.not_run, reader.not_run
    checks.of_storage(open_path(bucket))


def test_every_page_that_needs_something_exists(root):
    assert set(PAGES) | {IN_BUCKETS} <= set(reading.pages(root))


def test_blocks_are_in_a_known_language(root):
    """A command in a block of another language would not be run."""
    for name in reading.pages(root):
        text = (root / name).read_text()
        for match in re.finditer(r"^ *```(\S.*)\n(.*)", text, re.MULTILINE):
            assert match[1] in ("python", "sh", "mermaid", "{eval-rst}", "{commands}"), (
                f"{name}: a block in {match[1]!r}"
            )
        for fence in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            command = re.search(r"^(\S*/)?(hybridlm|python|make|srun) ", fence[2], re.MULTILINE)
            assert fence[1] == "sh" or not command, f"{name}: {command[0]} in a block without sh"
