"""The stages of one model's life: the recipe, its page and its make target agree, and they run."""

import ast
import re
import shlex

import pytest

from hybridlm.runs import lineage, metrics


@pytest.fixture
def stages(page_commands):
    """The commands of the page, as words."""
    return [words for words, _ in page_commands("runs.md") if "runs/life" in " ".join(words)]


def test_the_page_the_recipe_and_make_run_the_same_stages(root, stages):
    trained = [words for words in stages if words[0] != "inspect"]
    said = ast.get_docstring(ast.parse((root / "configs/life.py").read_text()))
    assert [
        shlex.split(c)[1:] for c in re.findall(r"hybridlm (?:train|branch) .*", said)
    ] == trained
    target = re.search(r"^life: setup\n((?:\t.*\n)+)", (root / "Makefile").read_text(), re.M)[1]
    assert [shlex.split(line)[1:] for line in target.splitlines()] == trained


@pytest.mark.slow
def test_the_stages_of_the_page_run(root, stages, tmp_path, command, monkeypatch):
    """In their smoke form; each stage begins with the one before it."""
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(root / name)
    monkeypatch.chdir(tmp_path)
    for words in stages:
        small = [re.sub(r"(life.py:\w+)", r"\1,smoke", word).replace("100", "2") for word in words]
        code, said, err = command(*small)
        assert code == 0 and said, err
    runs = tmp_path / "runs" / "life"
    assert [(o.path, o.step) for o in lineage.read(runs / "finetune")] == [
        ("runs/life/extend", 8),
        ("runs/life/decay", 10),
        ("runs/life/pretrain", 8),
    ]
    assert all(origin.parameters_sha256 in said for origin in lineage.read(runs / "finetune"))
    new = losses(runs / "pretrain")[0]
    for stage, before in (("decay", "pretrain"), ("extend", "decay")):
        first, last = losses(runs / stage)[0], losses(runs / before)[-1]
        assert abs(first - last) < (new - last) / 4, f"{new} at first, then {last} -> {first}"


def losses(path):
    return [r["loss"] for r in metrics.read(path / metrics.FILE) if r["kind"] == "train"]
