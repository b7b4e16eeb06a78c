"""Joint gates find the layers that are needed, among others that are not."""

import dataclasses

import jax
import numpy as np
import pytest

from hybridlm.data.tokenizers import ByteTokenizer
from hybridlm.distill.selection.branches import branches
from hybridlm.distill.selection.gates import train_gates
from hybridlm.distill.selection.retrieval import retrieval_batch
from hybridlm.distill.selection.settings import GateSettings
from hybridlm.distill.transfer import transfer
from hybridlm.errors import UserError
from hybridlm.models.params import Model
from kernels_pallas import dispatch
from tests.distill.subjects import teacher, with_params

SETTINGS = GateSettings(gate_steps=60, gate_lr=0.2)
TINY = GateSettings(gate_steps=13, gate_lr=0.2)
HALF = 0.5  # of the layers: the budget


@pytest.fixture(autouse=True)
def reference_forms():
    """Uses the reference forms, which compile fastest."""
    with dispatch.auto_means("reference"):
        yield


def without_output(model: Model, params, layers):
    """The parameters with mixers that add nothing in some layers, so that they are not needed."""
    for index in layers:
        layer = model.layer(params, index)
        mixer = layer["mixer"] | {"out": jax.tree.map(np.zeros_like, layer["mixer"]["out"])}
        params = model.with_layer(params, index, layer | {"mixer": mixer})
    return params


def planted(needed, mixer, depth=4):
    """(branch model, batches): only the mixers of `needed` matter; the teacher answers all rightly."""
    ours = teacher(depth)
    idle = set(range(depth)) - set(needed)
    ours = with_params(ours.model, without_output(ours.model, ours.params, idle))
    both = branches(ours, transfer(ours, mixer).student)

    def batches(step):
        rng = np.random.default_rng(step)
        x = rng.integers(0, 40, (4, 24)).astype(np.int32)
        rows = np.stack([rng.choice(np.arange(4, 24), 8, replace=False) for _ in x])
        return {
            "tokens": x,
            "segment_ids": np.ones_like(x),
            "positions": np.tile(np.arange(24, dtype=np.int32), (4, 1)),
            "targets": np.argmax(ours.logits(x), axis=-1).astype(np.int32),
            "rows": rows.astype(np.int32),
        }

    return both, batches


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(dict(kind="attention", window=2), marks=pytest.mark.slow),
        pytest.param(dict(kind="gdn"), marks=pytest.mark.slow),
    ],
    ids=lambda mixer: mixer["kind"],
)
def found(tmp_path_factory, request):
    """(model, batches, alphas, the file of the training)."""
    both, batches = planted({0, 2}, request.param)
    path = tmp_path_factory.mktemp("gates") / "gates.json"
    with dispatch.auto_means("reference"):
        return both, batches, train_gates(both, batches, SETTINGS, HALF, path=path), path


def test_gates_recover_a_planted_set_of_needed_layers(found):
    alphas = found[2]
    assert min(alphas[0], alphas[2]) > 0.8 and max(alphas[1], alphas[3]) < 0.2, alphas


def test_a_fixed_weight_is_the_nats_that_a_layer_must_be_worth(found):
    both, batches, _, _ = found
    little, much = (
        train_gates(both, batches, dataclasses.replace(SETTINGS, gate_weight=w), HALF)
        for w in (0.01, 100.0)
    )
    assert min(little[0], little[2]) > 0.8 and max(little[1], little[3]) < 0.8
    assert max(much.values()) < 0.1


def test_training_that_was_stopped_gives_the_same_bits(found, tmp_path):
    both, batches, alphas, _ = found
    path, asked = tmp_path / "gates.json", []

    def stopping(step):
        if step == 17:
            raise KeyboardInterrupt
        return batches(step)

    with pytest.raises(KeyboardInterrupt):
        train_gates(both, stopping, SETTINGS, HALF, path=path)
    again = train_gates(both, lambda s: asked.append(s) or batches(s), SETTINGS, HALF, path=path)
    assert again == alphas and min(asked[1:]) == 10, "it goes on from the last saved step"


def test_finished_training_makes_no_step(found):
    both, _, alphas, path = found
    assert train_gates(both, found[1], SETTINGS, HALF, path=path) == alphas


def test_a_layer_that_diverges_keeps_its_attention(found):
    both, batches, alphas, _ = found
    params = jax.tree.map(lambda p: p, both.params)
    ((_, block),) = params["unit"].items()
    kernel = block["mixer"]["student"]["out"]["kernel"]
    block["mixer"]["student"]["out"]["kernel"] = kernel.at[1].set(np.nan)
    broken = dataclasses.replace(both, params=params)
    damaged = train_gates(broken, batches, SETTINGS, 0.75)
    assert damaged[1] == 1 and damaged[0] > 0.8 and damaged[2] > 0.8 and damaged[3] < 0.2


@pytest.fixture(scope="module")
def tiny():
    """(model, batches) of two layers, with a mixer that compiles fast."""
    with dispatch.auto_means("reference"):
        return planted({0}, dict(kind="attention", window=2), depth=2)


def with_bad_steps(batches, bad):
    """The batches, of which those of some steps have no finite loss: a target that is no token."""

    def some(step):
        made = batches(step)
        return made | {"targets": made["targets"] + 1000} if step in bad else made

    return some


@pytest.mark.parametrize("bad", ({0, 3, 9}, {10, 11}), ids=str)
def test_steps_without_a_finite_loss_change_nothing(tiny, tmp_path, bad):
    """The gates are those of the other steps; also where training was stopped after it was saved."""
    both, batches = tiny[0], with_bad_steps(tiny[1], bad)
    good = [step for step in range(13) if step not in bad]
    fewer = dataclasses.replace(TINY, gate_steps=len(good))
    wanted = train_gates(both, lambda step: batches(good[step]), fewer, HALF)
    assert np.isfinite(list(wanted.values())).all()

    def stopping(step):
        if step == 12:
            raise KeyboardInterrupt
        return batches(step)

    notes, path = [], tmp_path / "gates.json"
    with pytest.raises(KeyboardInterrupt):
        train_gates(both, stopping, TINY, HALF, path=path)
    found = train_gates(both, batches, TINY, HALF, path=path, note=notes.append)
    assert found == wanted
    assert notes[0].startswith(f"{len(bad)} of 13 steps of the gates' training were skipped")


def test_training_without_a_finite_loss_is_refused(tiny):
    both, batches = tiny[0], with_bad_steps(tiny[1], range(13))
    with pytest.raises(UserError, match="none of the 13 steps has a finite loss"):
        train_gates(both, batches, TINY, HALF)


@pytest.mark.parametrize("task", ("needle", "mqar"))
def test_retrieval_batches_ask_for_tokens_that_stand_before(task):
    length = 256
    batch = retrieval_batch(task, ByteTokenizer(), 300, length, 4, seed=6)
    again = retrieval_batch(task, ByteTokenizer(), 300, length, 4, seed=6)
    assert all(np.array_equal(batch[n], again[n]) for n in batch)
    for row, targets, places in zip(batch["tokens"], batch["targets"], batch["rows"]):
        places = places[places >= 0]
        assert len(places), "there is no answer"
        for place in places:
            assert targets[place] in row[:place], (task, place)
