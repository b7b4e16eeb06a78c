"""Averages of checkpoints, and the moving average in a checkpoint, open as models."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm import config
from hybridlm.config import to_dict
from hybridlm.errors import RunError
from hybridlm.models.params import Model
from hybridlm.models.trainable import Trainable
from hybridlm.runs import average_checkpoints, checkpoint, json_files, open_model, workdir
from hybridlm.train import setup

STEPS = (3, 6, 9, 12)
FREEZE = "embedding|layers.[13].mixer"


@pytest.fixture(scope="module")
def run(tmp_path_factory, request):
    """A run of four checkpoints that were drawn, the last two with a moving average."""
    path = tmp_path_factory.mktemp("averaged") / "run"
    path.mkdir()
    demo = request.config.rootpath / "configs/demo.py"
    overrides = [("model.width", "16"), ("model.depth", "6"), ("optimizer.freeze", FREEZE)]
    loaded, _ = setup.resolve(config.load(f"{demo}:smoke", overrides))
    json_files.write_json(path / workdir.CONFIG, to_dict(loaded))
    model, rng = Model.of(loaded.model), np.random.default_rng(0)
    trainable = Trainable.of(model, FREEZE)

    def drawn():
        return jax.tree.map(
            lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), model.abstract
        )

    checkpoints = checkpoint.Checkpoints(path, keep=len(STEPS))
    for step in STEPS:
        ema = {"ema": trainable.take(drawn())} if step > 6 else {}
        checkpoints.save(step, {"params": drawn(), **ema}, {"step": step})
        checkpoints.wait()
    checkpoints.close()
    return path


@pytest.mark.parametrize("chosen", [dict(last=3), dict(steps=(12, 3))])
def test_an_average_is_numpys_and_opens_as_a_model(run, chosen, tmp_path, command, impatient):
    steps = STEPS[-chosen["last"] :] if "last" in chosen else sorted(chosen["steps"])
    params = [open_model(run, step).params for step in steps]
    expected = jax.tree.map(
        lambda *xs: np.mean([x.astype(np.float64) for x in xs], axis=0).astype(np.float32), *params
    )
    found = average_checkpoints(run, **chosen)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected)
    assert found.averaged == tuple(steps) and found.step is None
    name, value = next(iter(chosen.items()))
    text = ",".join(map(str, value)) if name == "steps" else value
    code, said, err = command("average", run, f"--{name}", text, "--out", tmp_path / "model")
    assert code == 0 and ", ".join(map(str, steps)) in said
    for work in (f"opening the checkpoint of step {steps[0]}", "writing the model"):
        assert f"{work} " in err
    opened = open_model(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, opened.params, expected)
    assert opened.seed == found.seed and opened.dtype == found.dtype
    sha256, listed = checkpoint.digest(expected), ", ".join(map(str, steps))
    code, said, _ = command("inspect", tmp_path / "model", "--verify", "--parameters")
    assert code == 0 and said.splitlines()[:4] == [
        f"model: {tmp_path / 'model'}",
        f"from: {run} averaged over steps {listed} (parameters {sha256})",
        f"parameters: {found.model.count():,}",
        f"parameters_sha256: {sha256}",
    ]
    assert "\nlayers.N.mixer" in said
    arrays = len(jax.tree.leaves(expected))
    assert said.splitlines()[-1] == f"verified: {arrays} arrays as saved"
    assert opened.data == dataclasses.replace(found.data, token_cache=str(run / "tokens"))
    assert json.loads((tmp_path / "model" / "model.json").read_text())["from"] == {
        "path": str(run),
        "step": None,
        "weights": "raw",
        "method": "uniform average",
        "steps": list(steps),
        "parameters_sha256": checkpoint.digest(expected),
    }


@pytest.mark.parametrize(
    "words, message",
    [
        (["--last", "5"], "holds 4 checkpoints (3, 6, 9, 12), fewer than the 5 to average"),
        (["--last", "1"], "--last must be at least 2"),
        (["--steps", "3,5"], "holds no checkpoint of step 5: it has 3, 6, 9, 12"),
        (["--steps", "3,3"], "--steps must name two checkpoints at least"),
        ([], "needs either --last N or --steps N,N"),
        (["--last", "2", "--steps", "3,6"], "needs either --last N or --steps N,N"),
    ],
)
def test_a_choice_that_cannot_be_averaged_is_refused(run, words, message, refusal, tmp_path):
    assert message in refusal("average", run, *words, "--out", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_is_no_run_has_no_checkpoints_to_average(refusal, tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        said = refusal("average", path, "--last", 2, "--out", tmp_path / "model")
        assert f"{path} is no run: it has no config.json" in said


def test_a_checkpoint_of_another_model_is_not_averaged(run, tmp_path):
    """As if it were copied from another run."""
    other = tmp_path / "run"
    other.mkdir()
    settings = json.loads((run / workdir.CONFIG).read_text())
    json_files.write_json(other / workdir.CONFIG, settings)
    checkpoints = checkpoint.Checkpoints(other, keep=2)
    for step, rows in ((3, 7), (6, 8)):
        params = open_model(run, step).params
        params["embedding"] = params["embedding"][: 20 * rows]
        checkpoints.save(step, {"params": jax.tree.map(jnp.asarray, params)}, {})
        checkpoints.wait()
    checkpoints.close()
    with pytest.raises(RunError, match="of another shape: embedding"):
        average_checkpoints(other, last=2)


def test_the_moving_average_opens_in_place_of_the_trained_parameters(run):
    raw, ema = open_model(run), open_model(run, weights="ema")
    assert (raw.weights, ema.weights) == ("raw", "ema")
    trainable = Trainable.of(raw.model, FREEZE)
    stored = checkpoint.load_numpy(run)[1]["ema"]
    jax.tree.map(np.testing.assert_array_equal, trainable.take(ema.params), stored)
    named = {k: raw.model.by_name(opened.params) for k, opened in (("raw", raw), ("ema", ema))}
    for name, value in named["raw"].items():
        fixed = name == "embedding" or name.startswith(("layers.1.mixer.", "layers.3.mixer."))
        assert np.array_equal(value, named["ema"][name]) == fixed, name
    jax.tree.map(np.testing.assert_array_equal, ema.params_at(12), ema.params)
    with pytest.raises(RunError, match="step 6 in .* has no moving average of the parameters"):
        open_model(run, 6, weights="ema")
