"""The stages of one model's life: the recipe, its page and its make target agree."""

import ast
import re
import shlex

import pytest


@pytest.fixture
def stages(page_commands):
    """The commands of the page, as words."""
    return [words for words in page_commands("runs.md") if "runs/life" in " ".join(words)]


def test_the_page_the_recipe_and_make_run_the_same_stages(root, stages):
    trained = [words for words in stages if words[0] != "inspect"]
    said = ast.get_docstring(ast.parse((root / "configs/life.py").read_text()))
    assert [
        shlex.split(c)[1:] for c in re.findall(r"hybridlm (?:train|branch) .*", said)
    ] == trained
    target = re.search(r"^life: setup\n((?:\t.*\n)+)", (root / "Makefile").read_text(), re.M)[1]
    assert [shlex.split(line)[1:] for line in target.splitlines()] == trained
