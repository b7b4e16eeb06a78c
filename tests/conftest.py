"""Runs tests on the CPU, selects slow tests, and defines shared fixtures."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"  # set before jax is imported, so that no accelerator is used
# Without this, LLVM takes most of a test's time to optimise programs that run for milliseconds.
FAST_COMPILE = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILE}".strip()
# Many processes compile the same programs, so a session shares a compilation cache. Workers and the
# commands that tests run inherit it.
CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.mkdtemp(prefix="hybridlm-tests-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import contextlib
import pathlib
import resource
import shutil
import subprocess
import sys
import uuid

import absl.logging
import jax
import pytest

from hybridlm import cli, progress
from tests import selection
from tests.docs import reading

ROOT = pathlib.Path(__file__).parent.parent

jax.config.update("jax_platforms", "cpu")
progress.PATIENCE = 3600.0  # tests read what commands say, and a busy machine is slow
# Importing submitit closes all log handlers. absl's would close the stream it was made with, which
# is pytest's own capture file wherever a test had replaced sys.stderr by then.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


def pytest_addoption(parser):
    selection.pytest_addoption(parser)
    parser.addoption(
        "--oracles",
        type=lambda text: pathlib.Path(text).resolve(),
        metavar="DIR",
        help="fixtures that tests/oracles/make_fixtures.py wrote, instead of the committed ones",
    )
    parser.addoption(
        "--checkpoints",
        type=lambda text: pathlib.Path(text).resolve(),
        metavar="DIR",
        help="fixtures that tests/convert/make_fixtures.py wrote, instead of the committed ones",
    )


def pytest_unconfigure(config):
    if CACHE:
        shutil.rmtree(CACHE, ignore_errors=True)


pytest_configure = selection.pytest_configure
pytest_collection_modifyitems = selection.pytest_collection_modifyitems
pytest_runtest_setup = selection.pytest_runtest_setup
pytest_runtest_teardown = selection.pytest_runtest_teardown
pytest_runtest_logreport = selection.pytest_runtest_logreport
pytest_sessionfinish = selection.pytest_sessionfinish


@pytest.fixture(autouse=True)
def no_mesh_is_set():
    yield
    assert jax.sharding.get_abstract_mesh().empty, "a mesh is still set after the test"


@pytest.fixture
def root() -> pathlib.Path:
    """The top folder of the checkout."""
    return ROOT


@pytest.fixture
def page_commands(root):
    """Reads the `hybridlm` commands of a page of docs/, each as its words."""

    def read(name):
        found = reading.blocks((root / "docs" / name).read_text(encoding="utf-8"))
        lines = [line for block in found if block.language == "sh" for line in block.commands]
        return [line.words[1:] for line in lines if line.words[0].endswith("/hybridlm")]

    return read


@pytest.fixture
def command(capsys):
    """Runs `hybridlm WORDS...` in this process; returns (exit code, stdout, stderr)."""

    def run(*words):
        code = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def impatient(monkeypatch):
    """Lets commands say at once, on stderr, what they say of work of more than two seconds."""
    monkeypatch.setattr(progress, "PATIENCE", 0.0)


@pytest.fixture
def refusal(command):
    """Runs a command that must fail with exit code 2; returns its one-line message."""

    def run(*words):
        code, _, err = command(*words)
        assert code == 2, f"exit code {code}"
        assert err.startswith("hybridlm: ") and err.count("\n") == 1, f"not one line: {err}"
        return err

    return run


@pytest.fixture
def in_root(monkeypatch) -> pathlib.Path:
    """Runs the test in the top folder of the checkout, where paths in recipes are valid."""
    monkeypatch.chdir(ROOT)
    return ROOT


@pytest.fixture(scope="session")
def storage_servers():
    """Servers of both kinds of bucket on loopback, which this process and its children use."""
    from tests.storage.servers import Servers

    servers = Servers()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in servers.environment.items():
            patch.setenv(name, value)
        yield servers
    servers.close()


@pytest.fixture(params=["gs", "s3"])
def bucket(request, storage_servers) -> str:
    """The URL of an empty folder in a bucket, for each kind of server."""
    return f"{request.param}://bucket/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def gate(bucket, storage_servers):
    """The gate before the server of `bucket`, which can make it fail."""
    return storage_servers.gates[bucket[:2]]


@pytest.fixture
def full_disk():
    """`with full_disk(n)`: no file can grow beyond n bytes; the kernel refuses the write."""

    @contextlib.contextmanager
    def limited(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


class SmallDisk:
    """A file system of its own in memory, `path`, with room for as many KiB as `resize` says."""

    def __init__(self, path):
        self.path = path
        path.mkdir()
        self._mount("size=64k")

    def resize(self, size: int) -> None:
        self._mount(f"remount,size={size}k")

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.path], check=True)

    def _mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.path]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr.strip())


@pytest.fixture
def small_disk(tmp_path):
    """A `SmallDisk`; where this process may not mount one, the test is skipped."""
    try:
        disk = SmallDisk(tmp_path / "disk")
    except OSError as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield disk
    disk.close()
