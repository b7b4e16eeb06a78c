"""The recipes of Distill-then-Replace: published sizes, and a config of a student's folder."""

import pytest

from experiments.distill_then_replace import papers, recipe
from hybridlm import config as configs
from hybridlm.distill.blockwise import distilled_layers
from hybridlm.models.params import Model
from tests.train.distilling import save_pair


@pytest.mark.parametrize(
    "name, billions", [("qwen2_5_1_5b", 1.54), ("llama_3_2_3b", 3.21), ("llama_3_1_8b", 8.03)]
)
def test_a_teacher_has_its_published_number_of_parameters(name, billions):
    assert Model.of(papers.teacher(name)).count() / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize("name", papers.MODELS)
def test_a_budget_of_100m_tokens_trains_every_layer_s_mixer(name):
    c = configs.load(f"{papers.__file__}:model={name},mixer=gla", [])
    assert c.tokens_per_step * c.train.steps == pytest.approx(1e8, rel=1e-3)
    assert len(distilled_layers(c.teacher.model, c.model)) == papers.MODELS[name]["depth"]


@pytest.mark.slow
def test_the_recipe_takes_the_model_and_the_tokenizer_of_the_student(tmp_path, in_root):
    save_pair(tmp_path, dict(kind="gdn"))
    arg = f"student={tmp_path / 'student'},teacher={tmp_path / 'teacher'},objective=kl,steps=40"
    c = configs.load(f"{recipe.__file__}:{arg}", [])
    assert c.model.layout.names == ("gdn", "gdn") and c.data.tokenizer.kind == "bytes"
    assert (c.teacher.objective, c.train.steps, c.optimizer.lr) == ("kl", 40, 1e-4)
