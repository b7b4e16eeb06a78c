"""Commands in the documentation run, and generated pages and tables are up to date."""

import json
import re
import shlex
import subprocess
import sys

import jax
import pytest

from hybridlm.commands import document as tables
from hybridlm.config.document import render
from hybridlm.data.sources import KINDS
from hybridlm.data.tokenizers import TokenizerConfig, open_tokenizer
from hybridlm.models.mixers import document as mixers_page
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig
from hybridlm.runs import OpenedModel, save_model


def test_the_page_of_settings_is_up_to_date(root):
    assert (root / "docs" / "config.md").read_text() == render(), (
        "run: python -m hybridlm.config.document > docs/config.md"
    )


def test_the_page_of_mixers_is_up_to_date(root):
    """No recorded law has failed."""
    record = json.loads((root / mixers_page.RECORD).read_text())
    assert (root / "docs" / "mixers.md").read_text() == mixers_page.render(record), (
        "run: python -m hybridlm.models.mixers.document > docs/mixers.md"
    )
    assert record["passed"] and set(record["passed"]) <= set(mixers_page.KINDS)
    assert all(all(laws.values()) for laws in record["passed"].values()), record["passed"]


def test_no_table_is_cut(root):
    """A row that a blank line separates from its table would be shown as text."""
    for page in [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("experiments/*/*.md")]:
        lines = ["", *page.read_text(encoding="utf-8").splitlines(), ""]
        for number, (before, line, after) in enumerate(zip(lines, lines[1:], lines[2:]), start=1):
            begins = line.startswith("|") and not before.startswith("|")
            assert not begins or re.match(r"\|[ :|-]+\|$", after), f"{page}:{number}: {line}"


@pytest.mark.parametrize("name", tables.PAGES)
def test_the_tables_of_tasks_and_probes_are_up_to_date(root, name):
    text = (root / "docs" / name).read_text()
    assert tables.BEGIN in text and text == tables.written(text, name), (
        "run: python -m hybridlm.commands.document"
    )


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/analysis.md",
        "docs/data.md",
        "docs/kernels.md",
        "docs/scorecard.md",
        "docs/runs.md",
        "docs/report.md",
        "docs/storage.md",
        "docs/sweeps.md",
        "docs/finetuning.md",
        "docs/gallery.md",
    ],
)
def test_the_targets_of_links_exist(root, name):
    text = (root / name).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert ((root / name).parent / target).exists(), f"{name} links to {target}"


def readme_commands(text):
    """(the `.venv/bin/hybridlm` commands of README's shell blocks, all lines of these blocks)."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(".venv/bin/hybridlm ")], lines


def test_every_command_of_the_readme_runs(root, tmp_path):
    """The commands run in order, in a folder with links to the checkout; the demo is a smoke run.

    The first Python block is the recipe; the others are scripts that run after the commands.
    """
    text = (root / "README.md").read_text()
    for name in ("configs", "data", "docs"):
        (tmp_path / name).symlink_to(root / name)
    recipe, *scripts = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.py").write_text(recipe)
    commands, lines = readme_commands(text)
    assert len(commands) >= 8

    def python(*words):
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True
        )

    def run(command):
        return python("-m", "hybridlm.cli", *shlex.split(command)[1:])

    demo = run(".venv/bin/hybridlm train --config configs/demo.py:smoke --workdir runs/demo")
    assert demo.returncode == 0, demo.stderr
    for command in commands:
        done = run(command)
        said = lines[lines.index(command) + 1] if command != lines[-1] else ""
        if said.startswith("# hybridlm: "):  # an intended mistake
            assert (done.returncode, done.stderr.splitlines()[-1:]) == (
                2,
                [said.removeprefix("# ")],
            )
        else:
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            assert done.stdout.strip(), f"{command} says nothing"
    assert (tmp_path / "runs" / "mine" / "report.html").exists()
    assert scripts
    for script in scripts:
        done = python("-c", script)
        assert done.returncode == 0, f"{script}\n{done.stderr}"
        assert done.stdout.strip(), f"{script} prints nothing"


def test_make_targets_of_the_readme_exist(root):
    text = "".join((root / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
    makefile = (root / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"no target {target}"


def test_the_examples_of_the_page_on_data_run(root, tmp_path, monkeypatch, capsys):
    """A block without a language after an example is what the example prints."""
    text = (root / "docs" / "data.md").read_text()
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```(?:\n\n```\n(.*?)```)?", text, re.DOTALL)
    assert len(examples) >= 2
    for example, printed in examples:
        exec(compile(example, "docs/data.md", "exec"), {})
        out = capsys.readouterr().out
        assert out and printed in ("", out)


def test_the_page_on_data_names_every_kind_of_source(root):
    text = (root / "docs" / "data.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(KINDS)


@pytest.mark.slow
def test_the_examples_of_the_page_on_analysis_run(root, tmp_path, monkeypatch, capsys):
    """They run in order, as in a notebook, on the model that the first one names."""
    mixers = dict(
        gdn=dict(kind="gdn", heads=2, head_dim=8),
        full=dict(kind="attention", heads=4, kv_heads=2, rope=None),
        nha=dict(kind="nha", heads=4, slots=4, window=6),
    )
    config = ModelConfig(
        width=32,
        depth=3,
        vocab_size=260,
        pattern="gdn full nha",
        mixers=mixers,
        mlp=dict(kind="swiglu", hidden=48),
    )
    model = Model.of(config)
    tokenizer = open_tokenizer(TokenizerConfig())
    made = OpenedModel(tmp_path, model, model.init(jax.random.key(0)), tokenizer, None, {}, None)
    save_model(made, tmp_path / "models" / "hybrid")
    monkeypatch.chdir(tmp_path)
    text = (root / "docs" / "analysis.md").read_text()
    examples, names = re.findall(r"```python\n(.*?)```", text, re.DOTALL), {}
    assert len(examples) >= 5
    for example in examples:
        exec(compile(example, "docs/analysis.md", "exec"), names)
        assert capsys.readouterr().out
