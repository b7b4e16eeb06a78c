"""The compilation cache: a second start compiles nothing, and no state of its folder stops a run."""

import collections
import contextlib
import json
import os
import pathlib
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from hybridlm import cli
from hybridlm.parallel import compilation_cache

EVENTS = collections.Counter()
REQUESTS, HITS = (
    f"/jax/compilation_cache/{n}" for n in ("compile_requests_use_cache", "cache_hits")
)
jax.monitoring.register_event_listener(lambda name, **_: EVENTS.update([name]))
OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)
RECIPE = "configs/mixers/sliding_window.py:smoke"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """Without the session's cache, which the tests share by jax's variables."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    for name in OPTIONS:
        monkeypatch.delenv(name.upper(), raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


@pytest.fixture
def started(capsys):
    """Runs a command as if in a new process; returns (programs asked for, programs found)."""

    def run(*words):
        jax.clear_caches()
        EVENTS.clear()
        assert cli.main([str(word) for word in words]) == 0
        return EVENTS[REQUESTS], EVENTS[HITS]

    return run


def entries(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(root.rglob("*-cache"))


def train(workdir, cache, tokens, *more):
    named = ["--config", RECIPE, "--workdir", workdir, f"--config.data.token_cache={tokens}"]
    return ["train", *named, f"--config.train.compilation_cache={cache}", *more]


def final_state(workdir, capsys) -> str:
    capsys.readouterr()
    cli.main(["inspect", str(workdir)])
    return next(x for x in capsys.readouterr().out.splitlines() if x.startswith("state_sha256"))


def test_a_second_run_compiles_nothing_and_ends_with_the_same_bits(
    started, tmp_path, in_root, capsys
):
    one_layer = ["--config.model.pattern=mixer", "--config.model.depth=1"]
    words = [tmp_path / "compiled", tmp_path / "tokens", "--config.train.steps=2", *one_layer]
    asked, found = started(*train(tmp_path / "cold", *words))
    assert asked > 5 and found == 0
    asked, found = started(*train(tmp_path / "warm", *words))
    assert asked > 5 and found == asked
    assert final_state(tmp_path / "warm", capsys) == final_state(tmp_path / "cold", capsys)


@pytest.mark.slow
def test_resuming_and_each_command_start_without_compiling(started, tmp_path, in_root, monkeypatch):
    """Training by other seeds, rates and lengths, too: they are no part of the step's program."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = tmp_path / "run"
    other_run, words = tmp_path / "other", ["auto", tmp_path / "tokens"]
    started(*train(run, *words))
    changed = ("--config.seed=5", "--config.optimizer.lr=0.0123", "--config.train.steps=9")
    other = train(other_run, *words, *changed)
    asked, found = started(*other)
    assert found == asked > 5
    # A run that was killed resumes from an earlier checkpoint.
    (other_run / "checkpoints" / "9").rename(tmp_path / "last")
    asked, found = started(*other, "--config.train.log_every=1")
    assert found == asked > 5
    model = ["--workdir", run]
    for command in (
        ["eval", *model, "--tasks", "perplexity,needle", "--lengths", "160", "--samples", "4"],
        ["probe", *model, "--probes", "heads", "--length", "160", "--samples", "4"],
        ["generate", *model, "--prompt", "We ", "--tokens", "40"],
    ):
        out = [] if command[0] == "generate" else ["--out", tmp_path / command[0]]
        started(*command, *out)
        asked, found = started(*command, *out)
        assert found == asked > 0, command[0]


@pytest.mark.parametrize("setting", ["off", "folder"])
def test_only_the_named_folder_is_written(setting, started, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    named = tmp_path / "named"
    compilation_cache.use("off" if setting == "off" else str(named))
    jax.clear_caches()
    jax.jit(lambda x: x * 2 + 1)(np.arange(3.0))
    assert not entries(tmp_path / "user")
    assert bool(entries(named)) == (setting == "folder")


def test_the_variable_of_jax_goes_before_the_setting(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    compilation_cache.use(str(tmp_path / "ours"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "jax")
    assert not (tmp_path / "ours").exists()


def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    compilation_cache.use(str(tmp_path / "file"))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(tmp_path / "file") in said and "not used" in said
    jax.clear_caches()
    np.testing.assert_array_equal(jax.jit(lambda x: x - 1)(np.arange(3)), [-1, 0, 1])


@contextlib.contextmanager
def files_of_at_most(size: int):
    """Makes writes fail beyond `size` bytes of a file, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_entry_cut_by_a_full_disk_is_said_in_one_line_and_mended_at_the_next_start(
    tmp_path, capsys
):
    def program(x):
        return jnp.tanh(x @ x.T).sum() + jnp.sort(x, axis=0)[0, 0]

    x = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    whole = jax.jit(program)(x)
    compilation_cache.use(str(tmp_path))
    jax.clear_caches()
    capsys.readouterr()
    with files_of_at_most(1000):
        assert jax.jit(program)(x) == whole
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("hybridlm: compilation cache: ")
    cut = [path for path in entries(tmp_path) if path.stat().st_size == 1000]
    assert cut

    compilation_cache.use(str(tmp_path))
    assert not any(path.exists() for path in cut)
    for _ in range(2):
        jax.clear_caches()
        EVENTS.clear()
        assert jax.jit(program)(x) == whole
    assert EVENTS[HITS] == EVENTS[REQUESTS] > 0
    assert not capsys.readouterr().err


def test_only_damaged_entries_are_removed(tmp_path):
    rng = np.random.default_rng(0)
    compilation_cache.use(str(tmp_path))
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    jax.clear_caches()
    jax.jit(lambda x: jnp.cos(x).sum())(rng.normal(size=5))
    kept = entries(folder)
    assert kept
    data = kept[0].read_bytes()
    for length in (0, 1, 4, 5, int(rng.integers(6, len(data) - 1)), len(data) - 1):
        (folder / f"cut{length}-cache").write_bytes(data[:length])
    assert compilation_cache.remove_damaged(folder) == 6
    assert entries(folder) == kept
    assert compilation_cache.remove_damaged(folder) == 0


@pytest.mark.slow
def test_processes_that_start_together_share_a_cold_folder(tmp_path, in_root):
    """All finish, with one result and no complaint, and the folder serves the next one."""
    variables = {k: v for k, v in os.environ.items() if k not in map(str.upper, OPTIONS)}
    variables["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    words = ["auto", tmp_path / "tokens", "--config.train.steps=4"]
    program = [sys.executable, "-m", "hybridlm.cli"]

    def start(name):
        return subprocess.Popen(
            [*program, *map(str, train(tmp_path / name, *words))],
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    runs = [start(name) for name in ("a", "b", "c")]
    ends = [(run.communicate()[1], run.returncode) for run in runs]
    assert all(code == 0 and "cache" not in said for said, code in ends), ends
    losses = [
        json.loads((tmp_path / n / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
        for n in "abc"
    ]
    assert len(set(losses)) == 1
    (folder,) = (tmp_path / "cache/hybridlm/compiled").iterdir()
    assert compilation_cache.remove_damaged(folder) == 0 and entries(folder)
