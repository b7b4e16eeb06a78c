"""Every recipe of configs/ loads, has a complete docstring, and trains in its smoke form."""

import ast
import math

import pytest

from hybridlm import config as configs
from hybridlm.models.accounting import active_parameters, train_flops_per_token, with_vocab
from hybridlm.models.params import Model
from hybridlm.runs import metrics
from hybridlm.train.loop import train

HELPERS = {
    "configs/common.py",
    "configs/gallery/published.py",
    "configs/nha/scratch.py",
    "configs/scale/hybrid.py",
}


def recipes(root):
    files = {str(p.relative_to(root)) for p in (root / "configs").rglob("*.py")}
    return sorted(files - HELPERS)


def smoke_specs(root):
    """A smoke run of each recipe, and of each architecture of configs/laziness.py."""
    architectures = configs.recipe_module(root / "configs/laziness.py").LOCAL
    matrix = [f"configs/laziness.py:{name},smoke" for name in architectures]
    return [f"{r}:smoke" for r in recipes(root) if r != "configs/laziness.py"] + matrix


def pytest_generate_tests(metafunc):
    root = metafunc.config.rootpath
    if "recipe" in metafunc.fixturenames:
        found = [r for r in recipes(root) if not r.startswith("configs/gallery/")]
        metafunc.parametrize("recipe", found)  # tests/gallery loads those of published models
    if "smoke_spec" in metafunc.fixturenames:
        metafunc.parametrize("smoke_spec", smoke_specs(root))


def test_helpers_are_not_recipes(root):
    for helper in HELPERS:
        assert not hasattr(configs.recipe_module(root / helper), "get_config")


def test_a_recipe_loads_and_documents_itself(in_root, recipe):
    """The docstring states hardware, time, expected result and the command that runs it."""
    config = configs.load(recipe, [])
    model = Model.of(with_vocab(config.model, 257))
    idle = model.count() - active_parameters(model)
    matrices = model.count(embeddings=False) - idle
    assert train_flops_per_token(model, config.data.seq_len) > 6 * matrices
    said = ast.get_docstring(ast.parse((in_root / recipe).read_text()))
    for part in ("Hardware: ", "Expected: ", "Run: "):
        assert part in said, f"{recipe} does not say {part!r}"
    assert f"hybridlm train --config {recipe}" in said


@pytest.mark.slow
def test_a_smoke_run_trains(in_root, tmp_path, smoke_spec):
    overrides = [("data.bigram_baseline", "False"), ("train.tensorboard", "False")]
    config = configs.load(smoke_spec, overrides)
    assert train(config, tmp_path) == 0
    records = metrics.read(tmp_path / metrics.FILE)
    losses = [r["loss"] for r in records if r["kind"] == "train"]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0], losses
    assert all(r["skipped"] == 0 for r in records if r["kind"] == "train")
