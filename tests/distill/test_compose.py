"""A composed model takes each layer from the teacher or from the student."""

import dataclasses

import numpy as np
import pytest

from hybridlm.distill.compose import check_alike, compose, composed
from hybridlm.distill.transfer import transfer
from hybridlm.errors import UserError
from hybridlm.runs import open_model, save_model
from tests.distill.subjects import FULL, opened, teacher, tokens
from tests.models.small import model_config


@pytest.fixture(scope="module")
def models():
    ours = opened(
        model_config("swa full", depth=4, mixers=dict(swa=dict(FULL, window=5), full=FULL))
    )
    return ours, transfer(ours, dict(kind="gdn")).student


@pytest.mark.parametrize("seed", range(4))
def test_each_layer_is_the_one_s_or_the_other_s(models, seed):
    ours, theirs = models
    keep = {i for i in range(4) if np.random.default_rng(seed).random(4)[i] < 0.5}
    model = composed(ours, theirs, keep)
    named = model.model.by_name(model.params)
    for source, layers in ((ours, keep), (theirs, set(range(4)) - keep)):
        for name, value in source.model.by_name(source.params).items():
            if not name.startswith("layers.") or int(name.split(".")[1]) in layers:
                np.testing.assert_array_equal(named.pop(name, value), value, err_msg=name)
    assert not named
    for index, (_, mixer) in enumerate(model.config.layer_mixers()):
        assert mixer == (ours if index in keep else theirs).config.layer_mixers()[index][1]


def test_all_of_one_is_the_one(models):
    for model, keep in zip(models, (range(4), ())):
        np.testing.assert_array_equal(
            composed(*models, set(keep)).logits(tokens()), model.logits(tokens())
        )


@pytest.mark.slow
def test_mixers_of_one_name_get_a_number():
    ours = teacher()
    theirs = transfer(ours, dict(kind="attention", window=3)).student
    config, _ = compose(ours, theirs, {1})
    assert [m.window for _, m in config.layer_mixers()] == [3, None, 3, 3]


@pytest.mark.slow
def test_a_composed_model_is_saved_and_opened(models, tmp_path):
    model = composed(*models, {2})
    save_model(model, tmp_path / "m")
    np.testing.assert_array_equal(
        open_model(tmp_path / "m").logits(tokens()), model.logits(tokens())
    )


def test_models_that_differ_elsewhere_are_refused(models):
    with pytest.raises(UserError, match="layer 4 cannot be kept"):
        compose(*models, {4})
    with pytest.raises(UserError, match="model.depth is 4 and the teacher's is 3"):
        compose(teacher(depth=3), models[1], set())


@pytest.mark.parametrize(
    "name, value",
    [
        ("streams", dict(count=2)),
        ("per_layer", dict(size=8)),
        ("residual_scale", 0.5),
        ("norm", "layernorm"),
    ],
)
def test_a_student_may_differ_in_its_mixers_alone(models, name, value):
    """Every other setting of a model is compared, but those that only training reads."""
    ours, theirs = (model.config for model in models)
    other = dataclasses.replace(ours, **{name: value})
    for teacher_config, student_config in ((other, theirs), (theirs, other)):
        with pytest.raises(UserError, match=f"model.{name} is .* may differ in their mixers only"):
            check_alike(teacher_config, student_config)
    check_alike(dataclasses.replace(ours, z_loss=1e-4, init_std=0.5), theirs)
