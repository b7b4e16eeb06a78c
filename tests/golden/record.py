"""Writes `golden.json`: the results of the runs of `recipe.py`, and of the stored run continued.

They were written before hybridlm's packages were reorganised, and later refactorings must reproduce
them. Rewrite them only for a change that is meant to change numbers, with `python -m
tests.golden.record CASE ...` from the top of the checkout; without cases, all are rewritten.
`run_at_step_3.tar.gz` is a run of an older version, which must remain resumable: it is written only
where it is missing.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence

from hybridlm import cli

HERE = pathlib.Path(__file__).parent
GOLDEN, ARCHIVE = HERE / "golden.json", HERE / "run_at_step_3.tar.gz"
RESUMED = "delta"  # the case whose checkpoint of step 3 is in the archive
FIGURES = ("loss", "bits_per_byte", "grad_norm", "learning_rate", "aux_loss")


def words(case: str, workdir: pathlib.Path, cache: pathlib.Path) -> list[str]:
    """The command that trains one case."""
    named = ["--config", f"tests/golden/recipe.py:{case}", "--workdir", str(workdir)]
    return ["train", *named, f"--config.data.token_cache={cache}"]


def train(case: str, workdir: pathlib.Path, cache: pathlib.Path) -> None:
    """Trains one case in a new process, with the compiler flags of the tests."""
    devices = "--xla_force_host_platform_device_count=4" if case == "mesh" else ""
    flags = f"--xla_backend_optimization_level=0 {devices}".strip()
    subprocess.run(
        [sys.executable, "-m", "hybridlm.cli", *words(case, workdir, cache)],
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        cwd=HERE.parent.parent,
        stdout=subprocess.DEVNULL,
    )


def result(workdir: pathlib.Path) -> dict:
    """Figures of each step, hashes of the final state, shapes of parameters, and config.json."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        cli.main(["inspect", str(workdir)])
    inspected = output.getvalue().splitlines()
    hashes = dict(line.split(": ", 1) for line in inspected if "sha256" in line)
    return {
        "figures": [
            {key: line[key] for key in ("kind", "step", *FIGURES) if key in line}
            for line in lines
            if line["kind"] in ("train", "eval")
        ],
        **hashes,
        "parameters": parameters(workdir),
        "config": config(workdir),
    }


def config(workdir: pathlib.Path) -> dict:
    """The contents of config.json, without the token cache, which differs between machines."""
    settings = json.loads((workdir / "config.json").read_text())
    settings["data"]["token_cache"] = None
    return settings


def parameters(workdir: pathlib.Path) -> dict[str, list[int]]:
    """The shape of each parameter of the newest checkpoint, by path."""
    import jax
    from orbax.checkpoint import v1 as ocp

    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    tree = ocp.metadata(newest.absolute()).metadata["params"]
    named = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape)
        for path, leaf in named
    }


def processor() -> str:
    """A hash of the processor's model and flags: programs for another one round differently."""
    text = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    kept = [line for line in text if line.startswith(("model name", "flags"))]
    return hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()[:16]


def resume(workdir: pathlib.Path, cache: pathlib.Path) -> dict:
    """The result of the stored run, continued from its step 3 to its end."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(workdir, filter="data")
    train(RESUMED, workdir, cache)
    return result(workdir)


def store(run: pathlib.Path) -> None:
    """Writes the archive of a finished run of `RESUMED`, which is changed."""
    shutil.rmtree(run / "checkpoints" / "6")
    (run / "config.json").write_text(json.dumps(config(run), indent=2) + "\n")
    with tarfile.open(ARCHIVE, "w:gz") as archive:
        for name in ("config.json", "metrics.jsonl", "checkpoints"):
            archive.add(run / name, arcname=name)


def main(names: Sequence[str]) -> None:
    from tests.golden.recipe import CASES

    golden = json.loads(GOLDEN.read_text()) if names else {"cases": {}}
    golden["processor"] = processor()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for case in names or CASES:
            train(case, folder / case, folder / "tokens")
            found = result(folder / case)
            # Settings that came later stay out: today's config must contain that of the first record.
            first = golden["cases"].get(case, found)["config"]
            golden["cases"][case] = {**found, "config": first}
            print(case, found["figures"][-1], flush=True)
        if RESUMED in (names or CASES):
            if not ARCHIVE.exists():
                store(folder / RESUMED)
            resumed = resume(folder / "resumed", folder / "tokens")
            golden["resumed"] = {**resumed, "config": golden["cases"][RESUMED]["config"]}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
