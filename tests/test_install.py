"""The installed package is found from every folder."""

import importlib.metadata
import os
import subprocess
import sys

import pytest


def test_a_folder_of_the_name_does_not_hide_the_package(tmp_path):
    """As in the folder above a clone, which has the package's name."""
    try:
        importlib.metadata.distribution("hybridlm")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("hybridlm is not installed: pip install -e '.[dev]'")
    (tmp_path / "hybridlm").mkdir()
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", "from hybridlm import __version__"],
        cwd=tmp_path,
        env=own,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + "install again: pip install -e '.[dev]'"
