"""Arrays of a checkpoint are listed without being read, and read by name, one or all."""

import contextlib
import json
import random
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hybridlm import config as configs
from hybridlm.config import to_dict
from hybridlm.errors import ConfigError, RunError
from hybridlm.models.params import Model
from hybridlm.runs import checkpoint, integrity
from hybridlm.runs.checkpoint import Checkpoints
from hybridlm.runs.stored import open_checkpoint
from hybridlm.storage import open_path

MIB = 2**20


def config_of(root, **model):
    config = configs.load(
        str(root / "configs" / "demo.py") + ":smoke",
        [(f"model.{key}", str(value)) for key, value in {"vocab_size": 64, **model}.items()],
    )
    return to_dict(config)


def values_like(abstract, seed):
    """Drawn values of the shapes, as numpy arrays."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), abstract)


def saved_run(root, path, seed=0, depth=6):
    """A run of two stacked repeats, with one checkpoint; returns its model and parameters."""
    settings = config_of(root, depth=depth, pattern="'swa full rec'")
    model = Model.of(configs.read(settings).model)
    params = values_like(model.abstract, seed)
    (path / "config.json").write_text(json.dumps(settings))
    checkpoints = Checkpoints(path, keep=1)
    state = {"params": params, "opt_state": {"mu": params["embedding"]}, "step": jnp.int32(7)}
    checkpoints.save(7, jax.tree.map(jnp.asarray, state), {})
    checkpoints.close()
    return model, params


@pytest.fixture(params=["local", "gs", pytest.param("s3", marks=pytest.mark.slow)])
def place(request, tmp_path):
    """A folder on this machine, or one of each kind of bucket."""
    if request.param == "local":
        return tmp_path
    request.getfixturevalue("storage_servers")
    return open_path(f"{request.param}://bucket/{tmp_path.name}")


def test_every_array_is_read_by_its_name(root, place):
    """A layer's parameter is its row of the stacked array; the rest of the train state too."""
    model, params = saved_run(root, place)
    opened = open_checkpoint(place)
    named = model.by_name(params)
    assert opened.step == 7 and opened.names()[: len(named)] == list(named)
    for name, value in named.items():
        assert opened.arrays[name].shape == value.shape, name
        np.testing.assert_array_equal(opened[name], value, err_msg=name)
    assert [*opened] == opened.names() and len(opened) == len(opened.arrays)
    assert "step" in opened and "steps" not in opened
    assert opened["step"] == 7
    np.testing.assert_array_equal(opened["opt_state.mu"], params["embedding"])
    assert sum(row["bytes"] for row in opened.rows()) == 4 + 4 * (
        sum(x.size for x in named.values()) + params["embedding"].size
    )


def test_globs_choose_arrays(root, tmp_path):
    saved_run(root, tmp_path)
    opened = open_checkpoint(tmp_path)
    assert list(opened.read("layers.1.mixer.q|embedding")) == [
        "embedding",
        "layers.1.mixer.q.kernel",
    ]
    with pytest.raises(ConfigError, match="the names has 'layer.1', which matches no name"):
        opened.names("layer.1")
    with pytest.raises(RunError, match="has no array layers.1.mixer.q: did you mean layers.1"):
        opened["layers.1.mixer.q"]


def test_a_model_folder_and_settings_of_another_program_open(root, tmp_path):
    """With a mixer that this program lacks, arrays have the names under which they are stored."""
    model, params = saved_run(root, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    folder = tmp_path / "model"
    checkpoint.save_tree(folder / "params", params)
    (folder / "model.json").write_text(json.dumps({"model": settings["model"]}))
    name = "layers.4.mixer.q.kernel"
    np.testing.assert_array_equal(open_checkpoint(folder)[name], model.by_name(params)[name])

    settings["model"]["mixers"]["swa"]["kind"] = "of another project"
    (folder / "model.json").write_text(json.dumps({"model": settings["model"]}))
    opened = open_checkpoint(folder)
    (stacked,) = [n for n in opened.names() if n.endswith("full.mixer.q.kernel")]
    assert stacked.startswith("unit.") and opened[stacked].shape[0] == 2
    np.testing.assert_array_equal(opened[stacked][1], model.by_name(params)[name])


@pytest.mark.parametrize("family", ["llama", "wrapped_mistral3"])
def test_the_dtype_is_the_one_in_the_files_of_transformers(root, tmp_path, family):
    """Of tensors cast to another dtype each; what is read of them is float32."""
    folder = shutil.copytree(root / "tests" / "convert" / "fixtures" / family, tmp_path / "model")
    (file,) = folder.glob("*.safetensors")
    drawn = [np.float16, ml_dtypes.bfloat16]
    tensors = {name: x.astype(random.choice(drawn)) for name, x in load_file(file).items()}
    save_file(tensors, file)
    opened = open_checkpoint(folder)
    (stored,) = [x.dtype for name, x in tensors.items() if "embed_tokens" in name]
    array = opened.arrays["embedding"]
    assert array.dtype == stored and array.nbytes == stored.itemsize * opened["embedding"].size
    assert opened["embedding"].dtype == np.float32


def test_an_array_that_has_changed_is_refused(root, tmp_path):
    saved_run(root, tmp_path, seed=1)
    other = tmp_path / "other"
    other.mkdir()
    saved_run(root, other, seed=2)
    state = "checkpoints/7/state"
    shutil.rmtree(tmp_path / state)
    shutil.copytree(other / state, tmp_path / state)
    with pytest.raises(RunError, match=r"embedding has changed since it was saved"):
        open_checkpoint(tmp_path)["embedding"]


def test_arrays_with_checksums_of_version_1_are_read(root, tmp_path):
    model, params = saved_run(root, tmp_path)
    path = tmp_path / checkpoint.FOLDER / "7" / integrity.METADATA
    stored = json.loads(path.read_text())
    kept = {k: v for k, v in stored["custom_metadata"].items() if k != integrity.SEAL}
    arrays = integrity.checksum.checksums(checkpoint.load_numpy(tmp_path)[1], 1)
    kept |= {integrity.VERSION: 1, integrity.ARRAYS: arrays}
    stored["custom_metadata"] = kept | {integrity.SEAL: integrity._sha256(kept)}
    path.write_text(json.dumps(stored))
    np.testing.assert_array_equal(open_checkpoint(tmp_path)["embedding"], params["embedding"])


def status(key):
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith(key)).split()[1])


@contextlib.contextmanager
def peak_growth():
    """The bytes by which this process's memory grew at most in the block, in a list."""
    grown = []
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = status("VmRSS")
    if status("VmHWM") - before > 2**24:
        pytest.skip("this system does not reset the peak of memory")
    yield grown
    grown.append(status("VmHWM") - before)


def test_reading_one_array_takes_memory_for_one(tmp_path):
    """Of 96 MiB in six arrays; a first read, outside of the measurement, starts the readers."""
    arrays = {f"a{i}": np.full((16, MIB // 4), i, np.float32) for i in range(6)}
    checkpoint.save_tree(tmp_path / "params", arrays)
    (tmp_path / "model.json").write_text("{}")
    opened = open_checkpoint(tmp_path)
    assert opened.arrays["a0"].nbytes == 16 * MIB
    opened["a0"]
    with peak_growth() as one:
        found = opened["a3"]
    assert found[3, 3] == 3 and one[0] <= 2.25 * 16 * MIB, one[0] / MIB
