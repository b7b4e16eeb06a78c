"""The config section `teacher`: what is read, frozen, refused; training towards its probabilities."""

import dataclasses

import jax
import numpy as np
import pytest

from hybridlm.analysis.cost import memory
from hybridlm.data import train_bpe
from hybridlm.data.settings import TokenizerConfig
from hybridlm.data.tokenizers import open_tokenizer
from hybridlm.errors import UserError
from hybridlm.models.trainable import Trainable
from hybridlm.runs import open_model, save_model
from hybridlm.train import setup
from hybridlm.train.init_plan import make_plan
from tests.train.distilling import Stepper, config, save_pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pair")
    save_pair(path, dict(kind="gla"), layers=(0, 2), depth=4)
    return path


def test_all_but_the_new_mixers_is_frozen_and_resolving_twice_changes_nothing(folder):
    resolved, _ = setup.resolve(config(folder, optimizer=dict(freeze="*.out")))
    model = setup.Model.of(resolved.model)
    part = Trainable.of(model, resolved.optimizer.freeze).take(model.abstract)
    named = model.by_name(model.abstract)
    mixers = ("layers.0.mixer.", "layers.2.mixer.")
    trained = [n for n in named if n.startswith(mixers) and ".out." not in n]
    count = sum(np.prod(named[n].shape) for n in trained)
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(part)) == count
    assert setup.resolve(resolved)[0] == resolved
    assert resolved.teacher.model == open_model(folder / "teacher").config


@pytest.mark.slow
def test_the_divergence_of_the_teacher_itself_is_0_and_falls_for_a_student(folder, tmp_path):
    given = config(folder, teacher=dict(objective="kl", temperature=2.0), optimizer=dict(lr=1e-2))
    _, found = Stepper(given).run(30)
    assert found[-1]["kl"] < 0.7 * found[0]["kl"]
    save_pair(tmp_path, dict(kind="attention", window=64))
    _, same = Stepper(config(tmp_path, teacher=dict(objective="kl"))).run(1)
    assert abs(same[0]["kl"]) < 1e-6 < found[0]["kl"]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (dict(optimizer=dict(name="adafactor")), "optimizer.name sums over layers"),
        (dict(spike_sigma=4.0), "train.spike_sigma would skip all layers"),
        (dict(optimizer=dict(freeze="!*.mixer")), "without '!'"),
        (dict(teacher=dict(path="nowhere")), "nowhere is no run"),
        (dict(teacher=dict(temperature=0)), "teacher.temperature"),
    ],
)
def test_what_cannot_be_distilled_is_one_sentence(folder, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        setup.resolve(config(folder, **changes))


def test_a_teacher_that_differs_elsewhere_is_refused(folder, tmp_path):
    save_pair(tmp_path, dict(kind="gla"), depth=4, mlp=dict(kind="swiglu", hidden=16))
    given = config(folder, teacher=dict(path=str(tmp_path / "teacher")))
    with pytest.raises(UserError, match="model.mlp is .* may differ in their mixers only"):
        setup.resolve(given)


@pytest.mark.parametrize("objective", ["blockwise", "kl"])
def test_a_teacher_that_reads_other_ids_is_refused(folder, objective, tmp_path):
    train_bpe(["the union of states"] * 4, 270, tmp_path / "bpe.json")
    other = open_tokenizer(TokenizerConfig(kind="hf", path=str(tmp_path / "bpe.json")))
    theirs = dataclasses.replace(open_model(folder / "teacher"), tokenizer=other)
    save_model(theirs, tmp_path / "teacher")
    given = config(folder, teacher=dict(path=str(tmp_path / "teacher"), objective=objective))
    with pytest.raises(UserError, match="trained with another tokenizer .*must read the same ids"):
        setup.resolve(given)


def test_mixers_of_a_model_that_is_drawn_are_not_distilled(folder):
    """All but the new mixers is frozen, and would stay as drawn."""
    with pytest.raises(UserError, match="init is None.* set init.path to the student"):
        setup.resolve(dataclasses.replace(config(folder), init=None))
    kl = config(folder, teacher=dict(objective="kl"))
    assert setup.resolve(dataclasses.replace(kl, init=None))[0].init is None


def test_a_teacher_of_the_same_mixers_is_refused(folder):
    given = config(folder, teacher=dict(path=str(folder / "student")))
    with pytest.raises(UserError, match="no layer of the student has another mixer"):
        setup.resolve(given)


@pytest.mark.slow
def test_an_architecture_stands_for_a_teacher_that_is_not_there(folder):
    """As for compiling ahead of time."""
    there, _ = setup.resolve(config(folder))
    teacher = dataclasses.replace(there.teacher, path="not/here")
    resolved, tokenizer = setup.resolve(dataclasses.replace(there, teacher=teacher))
    lowered = setup.lower_step(resolved, tokenizer.token_bytes(), jax.devices())
    assert lowered.teacher.config.layout.names == ("full",) * 4
    other = dataclasses.replace(there.teacher, model=there.model)
    with pytest.raises(UserError, match="teacher.model is not the architecture"):
        setup.resolve(dataclasses.replace(there, teacher=other))


@pytest.mark.parametrize(
    "fresh, refused",
    [
        ("*", True),
        ("layers.*.mixer", True),
        ("layers.1", True),
        ("layers.2.mixer.gate", False),
        ("layers.0.mixer|layers.2.mixer", False),
    ],
)
def test_parameters_that_are_not_trained_do_not_start_fresh(folder, fresh, refused):
    """They would stay as drawn."""
    given = config(folder)
    given = dataclasses.replace(given, init=dataclasses.replace(given.init, fresh=fresh))
    resolved, tokenizer = setup.resolve(given)
    if not refused:
        make_plan(resolved, tokenizer)
        return
    with pytest.raises(UserError, match="init.fresh is .* would stay as drawn"):
        make_plan(resolved, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["blockwise", "kl"])
def test_a_teacher_in_bfloat16_takes_half_the_memory_and_teaches_the_same(folder, objective):
    """To the precision of bfloat16, 3 digits."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        given = config(folder, teacher=dict(objective=objective, dtype=dtype))
        stepper = Stepper(given)
        size = sum(x.nbytes for x in jax.tree.leaves(stepper.taught))
        found[dtype] = size, stepper.run(3)[1][-1], memory(stepper.config, stepper.model).teacher
    (size, exact, counted), (half, rounded, told) = found.values()
    assert (size, half) == (counted, told) and 2 * half == size
    for name in ("mse_layer_0", "mse_layer_2") if objective == "blockwise" else ("kl",):
        assert (
            rounded[name] == pytest.approx(exact[name], rel=0.02) and rounded[name] != exact[name]
        )
