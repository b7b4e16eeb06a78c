"""Every recipe of the gallery has facts, a docstring and a small form, and errors are sentences."""

import ast

import pytest

from hybridlm import config as configs
from hybridlm import gallery
from hybridlm.errors import ConfigError, UserError
from hybridlm.gallery import catalogue
from tests.gallery.sheets import ROOT

FOLDER = ROOT / "configs" / "gallery"


@pytest.fixture(params=gallery.names(FOLDER))
def name(request):
    return request.param


def test_every_recipe_but_the_helper_is_a_model():
    files = {file.stem for file in FOLDER.glob("*.py")}
    assert set(gallery.names(FOLDER)) == files - {"published"}


def test_a_recipe_documents_itself(name):
    said = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8")))
    for part in (
        "Hardware: ",
        "Expected: ",
        f"Run:      hybridlm train --config configs/gallery/{name}.py",
    ):
        assert part in said, f"{name} does not say {part!r}"


def test_the_small_form_has_every_kind_of_layer_once(name):
    whole = gallery.load(name, FOLDER).config
    small = configs.load(f"{FOLDER / name}.py:smoke").model
    assert small.layout.labels == tuple(dict.fromkeys(whole.layout.labels))
    assert small.width <= 64 and small.vocab_size <= 512


def test_an_unknown_name_is_one_sentence(name):
    with pytest.raises(UserError, match=f"did you mean '{name}'"):
        gallery.load(f"{name}x", FOLDER)


def test_a_folder_without_models_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="has no recipe that defines FACTS"):
        gallery.names(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('total="8 billion"', 'FACTS.total must be a number and M, B or T, such as "8.03B"'),
        ('released="May 2024"', "FACTS.released must be a year and a month"),
        ('totals="8B"', "unknown key FACTS.totals: did you mean 'total'"),
    ],
)
def test_wrong_facts_are_one_sentence(tmp_path, wrong, said):
    facts = dict(title="T", developer="D", released="2024-04", source="S", upstream="D/T")
    text = f"\nFACTS = dict({facts}, context=1, total='8B') | dict({wrong})\n"
    (tmp_path / "wrong.py").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        gallery.load("wrong", tmp_path)


def test_the_folder_is_that_of_the_clone_when_there_is_none_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert catalogue.folder() == FOLDER
