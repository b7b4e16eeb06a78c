"""A checkpoint with a flipped bit is either read exactly or refused, by the name of the array."""

import json
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm.commands import inspect
from hybridlm.errors import RunError, WriteError
from hybridlm.runs import checkpoint, integrity
from hybridlm.storage import objects, open_path

pytestmark = pytest.mark.xdist_group("integrity")  # one checkpoint for all tests
MIXER = {"kind": "attention", "heads": 1}
MODEL = {"width": 16, "depth": 1, "vocab_size": 258, "pattern": "a", "mixers": {"a": MIXER}}
MODEL["mlp"] = {"kind": "swiglu", "hidden": 16}
CONFIG = {"lr": 0.1, "betas": (0.9, 0.95), "window": None, "limit": float("inf")}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A workdir with a checkpoint of random bits, which do not compress, and its state."""
    rng = np.random.default_rng(0)

    def drawn(shape, dtype):
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        return jnp.asarray(rng.integers(0, 256, size, np.uint8).view(dtype).reshape(shape))

    params = {"w": drawn((40, 30), np.float32), "blocks": {"k": drawn((50, 20), jnp.bfloat16)}}
    moments = {"w": drawn((40, 30), np.float32), "blocks": {"k": drawn((50, 20), np.float32)}}
    state = {"params": params, "opt_state": ({"mu": moments}, ()), "step": jnp.int32(3)}
    workdir = tmp_path_factory.mktemp("integrity")
    checkpoints = checkpoint.Checkpoints(workdir, keep=2)
    checkpoints.save(3, state, {"step": 3, "config": CONFIG})
    checkpoints.wait()
    checkpoints.close()
    return workdir, state


@pytest.fixture
def copied(written, tmp_path):
    shutil.copytree(written[0], tmp_path / "run")
    return tmp_path / "run"


def restore(workdir, state):
    checkpoints = checkpoint.Checkpoints(workdir, keep=2)
    try:
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        return checkpoints.restore(abstract)
    finally:
        checkpoints.close()


def folder(workdir):
    return workdir / checkpoint.FOLDER / "3"


def flip(path, byte, bit):
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1 << bit
    path.write_bytes(bytes(raw))


def data_file(workdir):
    """The file with the bytes of the arrays."""
    return max(folder(workdir).rglob("d/*"), key=lambda path: path.stat().st_size)


def place_of(array, path):
    """Where an array's bytes begin in a file: they are random, and zstd leaves them as they are."""
    place = path.read_bytes().find(np.asarray(array).tobytes())
    assert place > 0
    return place


def test_what_is_saved_is_read(written):
    workdir, state = written
    assert checkpoint.verify(workdir, 3) == 5
    assert checkpoint.digest(restore(workdir, state)) == checkpoint.digest(state)
    stored = json.loads((folder(workdir) / integrity.METADATA).read_text())["custom_metadata"]
    assert stored["checksums"].keys() == integrity.checksum.named(state).keys()
    assert stored["step"] == 3


def test_inspect_says_which_checkpoint_it_verifies(written, impatient, capsys):
    assert inspect.verify(written[0]) == "verified_3: 5 arrays as saved"
    assert "verifying the checkpoint of step 3 ...\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["params/blocks/k", "opt_state/0/mu/w"])
def test_a_flipped_bit_is_refused_by_the_arrays_name(written, copied, name):
    """On restore, on loading and on verifying; the other arrays are not named."""
    rng = np.random.default_rng()
    array = integrity.checksum.named(written[1])[name]
    path = data_file(copied)
    flip(path, place_of(array, path) + rng.integers(array.nbytes), rng.integers(8))
    sentence = rf"checkpoints/3 cannot be read \({name} has changed since it was saved\): copy it"
    with pytest.raises(RunError, match=sentence):
        restore(copied, written[1])
    with pytest.raises(RunError, match=sentence):
        checkpoint.load_numpy(copied)
    with pytest.raises(RunError, match=sentence):
        checkpoint.verify(copied, 3)


def test_any_flipped_bit_is_harmless_or_refused(written, copied):
    """In every file: arrays, TensorStore's index, Orbax's JSON and the checksums themselves."""
    rng = np.random.default_rng()
    whole = checkpoint.digest(checkpoint.load_numpy(copied)[1])
    refused = 0
    for path in sorted(p for p in folder(copied).rglob("*") if p.stat().st_size and p.is_file()):
        raw = path.read_bytes()
        for _ in range(3):
            byte, bit = int(rng.integers(len(raw))), int(rng.integers(8))
            flip(path, byte, bit)
            try:
                assert checkpoint.digest(checkpoint.load_numpy(copied)[1]) == whole, (
                    path,
                    byte,
                    bit,
                )
            except RunError as error:
                assert "checkpoints/3 cannot be read (" in str(error)
                refused += 1
                with pytest.raises(RunError):
                    checkpoint.verify(copied, 3)
            path.write_bytes(raw)
    assert refused >= 9, "flips in the files of arrays, index and metadata must be refused"


def test_an_unreadable_array_is_named_though_orbax_does_not_say_which(written, copied):
    """Bytes that are no zstd stream: the loader fails, and the arrays are read one by one."""
    path = data_file(copied)
    place = place_of(written[1]["params"]["w"], path)
    raw = bytearray(path.read_bytes())
    raw[place - 6 : place] = bytes(6)  # the end of zstd's header
    path.write_bytes(bytes(raw))
    with pytest.raises(RunError, match=r"\(params/w cannot be read \(.*ZSTD.*copy it again"):
        checkpoint.load_numpy(copied)


def test_changed_metadata_are_refused(copied):
    path = folder(copied) / integrity.METADATA
    path.write_text(path.read_text().replace('"lr": 0.1', '"lr": 0.2'))
    with pytest.raises(RunError, match=r"\(_CHECKPOINT_METADATA has changed since it was saved"):
        checkpoint.load_numpy(copied)


def test_an_old_checkpoint_opens_without_checksums(written, copied):
    """Its metadata are those that versions before the checksums wrote."""
    path = folder(copied) / integrity.METADATA
    stored = json.loads(path.read_text())
    for key in (integrity.ARRAYS, integrity.VERSION, integrity.SEAL):
        del stored["custom_metadata"][key]
    path.write_text(json.dumps(stored))
    assert checkpoint.verify(copied, 3) is None
    restore(copied, written[1])
    checkpoint.load_numpy(copied)


def test_arrays_that_do_not_fit_on_the_disk_are_one_sentence(written, tmp_path, full_disk):
    sentence = r"^\S+/params cannot be written: File too large$"
    with full_disk(3000), pytest.raises(WriteError, match=sentence):
        checkpoint.save_tree(tmp_path / "params", written[1])


def test_checksums_of_version_1_are_verified(written, copied):
    workdir, state = written
    path = folder(copied) / integrity.METADATA
    stored = json.loads(path.read_text())
    metadata = {k: v for k, v in stored["custom_metadata"].items() if k != integrity.SEAL}
    arrays = checkpoint.load_numpy(workdir)[1]
    metadata |= {integrity.VERSION: 1, integrity.ARRAYS: integrity.checksum.checksums(arrays, 1)}
    stored["custom_metadata"] = metadata | {integrity.SEAL: integrity._sha256(metadata)}
    path.write_text(json.dumps(stored))
    assert checkpoint.verify(copied, 3) == 5
    restore(copied, state)
    file = data_file(copied)
    flip(file, place_of(integrity.checksum.named(arrays)["params/w"], file), 3)
    for read in (lambda: restore(copied, state), lambda: checkpoint.verify(copied, 3)):
        with pytest.raises(RunError, match=r"\(params/w has changed since it was saved\)"):
            read()


def test_one_of_three_seals_missing_is_damage(copied):
    path = folder(copied) / integrity.METADATA
    path.write_text(path.read_text().replace('"checksums"', '"checksuns"'))
    with pytest.raises(RunError, match="_CHECKPOINT_METADATA cannot be read .'checksums'"):
        checkpoint.load_numpy(copied)


def test_a_newer_versions_checksums_are_refused(copied):
    path = folder(copied) / integrity.METADATA
    stored = json.loads(path.read_text())
    metadata = stored["custom_metadata"]
    metadata.pop(integrity.SEAL)
    metadata[integrity.VERSION] += 1
    metadata[integrity.SEAL] = integrity._sha256(metadata)
    path.write_text(json.dumps(stored))
    with pytest.raises(RunError, match="checksums of version 3, newer than this program"):
        checkpoint.load_numpy(copied)


def test_an_array_of_another_dtype_is_not_restored(written):
    """Orbax would convert it."""
    wrong = jax.tree.map(lambda x: x, written[1])
    wrong["params"]["w"] = wrong["params"]["w"].astype(jnp.bfloat16)
    with pytest.raises(RunError, match=r"params/w is bfloat16\[40,30\] and was float32\[40,30\]"):
        restore(written[0], wrong)


@pytest.fixture
def slow_sums(monkeypatch):
    """Checksums of host arrays that begin when the event is set."""
    may_begin, sums = threading.Event(), integrity.checksum._host_sums

    def late(*arguments, **settings):
        assert may_begin.wait(timeout=60)
        return sums(*arguments, **settings)

    monkeypatch.setattr(integrity.checksum, "_host_sums", late)
    yield may_begin
    may_begin.set()


def test_what_was_saved_may_be_donated_and_changed_before_it_is_summed(tmp_path, slow_sums):
    rng = np.random.default_rng()
    state = {f"w{i}": jnp.asarray(rng.standard_normal((64, 32), np.float32)) for i in range(4)}
    state["of_numpy"] = rng.standard_normal((64, 32))
    digest = checkpoint.digest(state)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: 3 * x + 1, tree), donate_argnums=0)
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state, {"step": 1})
    of_numpy = state.pop("of_numpy")
    of_numpy[:] = 0
    for _ in range(3):
        state = jax.block_until_ready(step(state))
    assert checkpoint.steps(tmp_path) == [], "it is not complete without its checksums"
    slow_sums.set()
    checkpoints.wait()
    checkpoints.close()
    assert checkpoint.verify(tmp_path, 1) == 5
    assert checkpoint.digest(checkpoint.load_numpy(tmp_path)[1]) == digest


def test_a_checkpoint_whose_checksums_fail_is_none(written, tmp_path, monkeypatch):
    def failing(*arguments, **settings):
        raise MemoryError("no memory for checksums")

    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    monkeypatch.setattr(integrity.checksum, "_host_sums", failing)
    checkpoints.save(1, written[1], {"step": 1})
    with pytest.raises(RunError, match="cannot be written .*no memory for checksums"):
        checkpoints.wait()
    assert checkpoint.steps(tmp_path) == []


def test_metadata_are_those_of_the_time_of_the_save(tmp_path, slow_sums):
    metadata = {"step": 1, "sizes": [1, 2]}
    sealed = integrity.sealed(metadata, {"w": np.ones(3)})
    metadata["sizes"].append(3)
    slow_sums.set()
    assert dict(sealed)["sizes"] == [1, 2]
    added = {integrity.ARRAYS, integrity.VERSION, integrity.SEAL}
    assert dict(sealed).keys() == {"step", "sizes"} | added
    assert json.loads(json.dumps(sealed)) == dict(sealed)


@pytest.mark.parametrize(
    "read",
    [
        lambda sealed: sealed.get(integrity.SEAL),
        lambda sealed: integrity.SEAL in sealed,
        lambda sealed: len(sealed) == 4,
        lambda sealed: len(sealed.values()) == 4,
        lambda sealed: integrity.SEAL in sealed.copy(),
        lambda sealed: sealed != {"step": 1, integrity.VERSION: integrity.checksum.VERSION},
        lambda sealed: sealed == integrity.sealed({"step": 1}, {"w": np.ones(3)}),
    ],
    ids=["get", "in", "len", "values", "copy", "!=", "=="],
)
def test_every_way_to_read_metadata_waits_for_the_checksums(read):
    assert read(integrity.sealed({"step": 1}, {"w": np.ones(3)}))


def test_a_flipped_bit_in_a_bucket_is_refused_by_the_arrays_name(written, bucket):
    workdir, state = open_path(bucket), written[1]
    checkpoints = checkpoint.Checkpoints(workdir, keep=1)
    checkpoints.save(3, state, {})
    checkpoints.wait()
    checkpoints.close()
    assert checkpoint.verify(workdir, 3) == 5
    array = np.asarray(state["params"]["w"]).tobytes()
    for key in objects.keys(folder(workdir)):
        path = folder(workdir) / key
        if (place := path.read_bytes().find(array)) >= 0:
            flip(path, place + 100, 3)
    for read in (checkpoint.load_numpy, lambda path: checkpoint.verify(path, 3)):
        with pytest.raises(RunError, match=r"\(params/w has changed since it was saved\)"):
            read(workdir)


class _Late:
    """Reports an error as TensorStore does when an array arrives too late: nobody can catch it."""

    def __init__(self, text):
        self.text = text

    def __del__(self):
        raise RuntimeError(self.text)


def test_arrays_that_arrive_after_a_failed_one_are_not_reported(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: said.append(str(found.exc_value)))
    hook = sys.unraisablehook
    with pytest.raises(RunError, match="cannot be read"), integrity.readable(tmp_path, "copy it"):
        _Late("Event loop is closed")
        _Late("another")
        raise ValueError
    assert said == ["another"] and sys.unraisablehook is hook


def test_a_checkpoint_without_its_data_is_refused_in_one_line(copied):
    data = max(folder(copied).rglob("d/*"), key=lambda path: path.stat().st_size)
    data.unlink()
    program = "import sys; from hybridlm import cli; sys.exit(cli.main())"
    (copied / "config.json").write_text("{}")
    words = [sys.executable, "-c", program, "inspect", str(copied), "--verify"]
    done = subprocess.run(words, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("loading jax")]
    assert done.returncode == 2 and len(lines) == 1 and "cannot be read" in lines[0]


def test_a_model_of_many_arrays_without_its_data_is_refused_in_one_line(tmp_path):
    """Orbax reads all arrays at once, and each of them fails."""
    rng = np.random.default_rng(0)
    params = {f"w{i}": rng.random((16, 16), np.float32) for i in range(100)}
    checkpoint.save_tree(tmp_path / "params", params)
    max((tmp_path / "params").rglob("d/*"), key=lambda path: path.stat().st_size).unlink()
    (tmp_path / "model.json").write_text(json.dumps({"model": MODEL, "tokenizer": {}}))
    words = ["-m", "hybridlm.cli", "generate", "--workdir", str(tmp_path), "--prompt", "a"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("loading jax")]
    assert done.returncode == 2 and len(lines) == 1 and "every array cannot be read" in lines[0]
