"""A mixer and a probe are added as in CONTRIBUTING.md, by changing only the files it names."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
COPIED = ("hybridlm", "kernels_pallas", "configs", "tests", "docs", "data", "pyproject.toml")

MIXER = {
    "hybridlm/models/mixers/toy_rwkv7.py": HERE / "toy_rwkv7.py",
    "hybridlm/models/mixers/__init__.py": [
        (
            "KINDS: dict",
            "from hybridlm.models.mixers.toy_rwkv7 import ToyRWKV7Config\n\nKINDS: dict",
        ),
        ("        ShortConvConfig,\n", "        ShortConvConfig,\n        ToyRWKV7Config,\n"),
    ],
    "tests/models/small.py": [
        ("MIXERS = {\n", 'MIXERS = {\n    "toy": dict(kind="toy_rwkv7", heads=2),\n')
    ],
    "hybridlm/models/mixers/document.py": [
        (
            '    "Hymba": dict(\n',
            '    "toy": dict(kind="toy_rwkv7", heads=HEADS),\n    "Hymba": dict(\n',
        )
    ],
    "configs/mixers/toy_rwkv7.py": HERE / "toy_recipe.py",
}
PROBE = {
    "hybridlm/probes/stream_size.py": HERE / "toy_probe.py",
    "hybridlm/probes/registry.py": [
        (
            "from hybridlm.probes.weights",
            "from hybridlm.probes.stream_size import STREAM_SIZE\nfrom hybridlm.probes.weights",
        ),
        ("        SLOT_SHARE,\n", "        SLOT_SHARE,\n        STREAM_SIZE,\n"),
    ],
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory, request):
    """A copy of the checkout with the toys added."""
    top = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        source = request.config.rootpath / name
        ignored = shutil.ignore_patterns("__pycache__", "fixtures")
        if source.is_dir():
            shutil.copytree(source, top / name, ignore=ignored)
        else:
            shutil.copy(source, top / name)
    for path, change in {**MIXER, **PROBE}.items():
        if isinstance(change, pathlib.Path):
            shutil.copy(change, top / path)
            continue
        text = (top / path).read_text()
        for old, new in change:
            assert text.count(old) == 1, f"{path} has no single {old!r}"
            text = text.replace(old, new)
        (top / path).write_text(text)
    return top


def python(copy, *words):
    """Runs a module of the copy and returns its output."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "heading, changes", [("A new mixer", MIXER), ("A new probe", PROBE)], ids=["mixer", "probe"]
)
def test_contributing_names_all_changed_files(heading, changes, root):
    text = (root / "CONTRIBUTING.md").read_text()
    section = re.search(rf"\*\*{heading}\*\*(.*?)\n\n", text, re.DOTALL)[1]
    named = set(re.findall(r"`([\w/]+\.py|[\w/]+/)`", section.replace("NAME", "X")))
    for path, change in changes.items():
        new = isinstance(change, pathlib.Path)
        written = path.replace(pathlib.Path(path).stem, "X") if new else path
        assert written in named, f"{path} is not named under {heading!r}: {sorted(named)}"


@pytest.mark.slow
@pytest.mark.xdist_group("contributing")
def test_the_mixer_obeys_the_laws(copy):
    """Packed documents are separate, decoding equals the parallel form, and outputs are causal."""
    laws = [
        f"tests/models/test_mixer_laws.py::test_law[toy-{law}]" for law in ("packed = separate",)
    ]
    laws += [
        f"tests/models/test_mixer_laws.py::test_every_law_of_every_variant[toy-{law}]"
        for law in ("decode = whole", "split = whole", "causal")
    ]
    said = python(copy, "pytest", "-o", "addopts=", "-p", "no:xdist", "--slow", "all", *laws)
    assert "4 passed" in said


@pytest.mark.slow
@pytest.mark.xdist_group("contributing")
def test_a_hybrid_with_the_mixer_trains_with_the_live_probe_and_is_probed(copy, tmp_path):
    """The scan passes the lowest layer's values to the other layers."""
    run, out = tmp_path / "run", tmp_path / "probed"
    said = python(
        copy,
        "hybridlm.cli",
        "train",
        "--config",
        "configs/mixers/toy_rwkv7.py:smoke",
        "--workdir",
        run,
        "--config.model.depth=8",
        "--config.data.seq_len=192",
        "--config.probes.which=['stream_size']",
        "--config.probes.interval=4",
        "--config.probes.samples=2",
        "--config.train.tensorboard=False",
    )  # the pattern twice: a scan of two
    assert "stream " in said
    live = [json.loads(line) for line in (run / "probes.jsonl").read_text().splitlines()]
    assert [r["layer"] for r in live if r["kind"] == "stream_size"] == [*range(8)] * 2
    python(
        copy,
        "hybridlm.cli",
        "probe",
        "--workdir",
        run,
        "--probes",
        "stream_size",
        "--samples",
        2,
        "--out",
        out,
    )
    assert "stream_size" in (out / "probes.txt").read_text()
    assert "stream_size" in python(copy, "hybridlm.cli", "probe", "--help")
    assert "| toy |" in python(copy, "hybridlm.models.mixers.document")
    page = python(copy, "hybridlm.config.document")
    assert "kind 'toy_rwkv7'" in page and "rank of the low-rank map that makes the decay" in page
